// node generate.js TARGET PROMPT MAX_TOKENS: the answer on standard output, as it comes.
//
// TLS_CA, TLS_CERTIFICATE and TLS_KEY name PEM files for TLS, TOKEN_FILE a token's.
'use strict';

const fs = require('node:fs');
const { grpc, headwise } = require('./contract');

const [target, prompt, maxTokens] = process.argv.slice(2);
const { TLS_CA, TLS_CERTIFICATE, TLS_KEY, TOKEN_FILE } = process.env;
const read = (file) => (file ? fs.readFileSync(file) : null);

const credentials = TLS_CA
  ? grpc.credentials.createSsl(read(TLS_CA), read(TLS_KEY), read(TLS_CERTIFICATE))
  : grpc.credentials.createInsecure();
const metadata = new grpc.Metadata();
if (TOKEN_FILE) {
  metadata.set('authorization', `Bearer ${read(TOKEN_FILE).toString().trim()}`);
}

const client = new headwise.DecodeService(target, credentials);
const call = client.Generate(
  { text: prompt, max_tokens: Number(maxTokens), ignore_eos: true },
  metadata,
  { deadline: Date.now() + 60_000 },
);
call.on('data', ({ delta, result }) => {
  if (delta) {
    process.stdout.write(delta.text);
  } else {
    process.stderr.write(JSON.stringify(result) + '\n');
  }
});
call.on('error', (error) => {
  process.stderr.write(`${grpc.status[error.code]}: ${error.details}\n`);
  process.exitCode = 1;
});
call.on('end', () => client.close());
