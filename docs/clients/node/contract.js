// The contract, loaded from proto/ as it is: no generated code.
'use strict';

const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const PROTO = process.env.PROTO_FOLDER || path.join(__dirname, '../../../proto');

const definition = protoLoader.loadSync(
  ['headwise/v1/decode.proto', 'headwise/v1/prefill.proto'],
  { includeDirs: [PROTO], keepCase: true, longs: String, enums: String, oneofs: true, defaults: true },
);

module.exports = { grpc, headwise: grpc.loadPackageDefinition(definition).headwise.v1 };
