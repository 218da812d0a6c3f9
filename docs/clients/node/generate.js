// node generate.js TARGET PROMPT MAX_TOKENS: the answer on standard output, as it comes.
//
// HEADWISE_CA, HEADWISE_CERT and HEADWISE_KEY name PEM files for TLS, HEADWISE_TOKEN_FILE a token's.
'use strict';

const fs = require('node:fs');
const { grpc, headwise } = require('./contract');

const [target, prompt, maxTokens] = process.argv.slice(2);
const { HEADWISE_CA, HEADWISE_CERT, HEADWISE_KEY, HEADWISE_TOKEN_FILE } = process.env;
const read = (file) => (file ? fs.readFileSync(file) : null);

const credentials = HEADWISE_CA
  ? grpc.credentials.createSsl(read(HEADWISE_CA), read(HEADWISE_KEY), read(HEADWISE_CERT))
  : grpc.credentials.createInsecure();
const metadata = new grpc.Metadata();
if (HEADWISE_TOKEN_FILE) {
  metadata.set('authorization', `Bearer ${read(HEADWISE_TOKEN_FILE).toString().trim()}`);
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
