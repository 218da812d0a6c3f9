// node prefill.js TARGET POLICY LAYER HEAD TOKEN_ID...: pulls a cache, checks every byte of it, and
// prints one head's rows as JSON. It follows docs/wire-format.md and nothing else.
'use strict';

const crypto = require('node:crypto');
const { grpc, headwise } = require('./contract');

const [target, policy, layer, head, ...tokens] = process.argv.slice(2);
const ELEMENT_BYTES = { float32: 4, float16: 2, bfloat16: 2 };
const TENSORS = ['KEYS', 'VALUES', 'POSITIONS', 'SCORES', 'FLAGS', 'LOG_WEIGHTS'];
const KINDS = { HEADER: 1, INDEX: 2, KEYS: 3, VALUES: 4, POSITIONS: 5, SCORES: 6, FLAGS: 7, TRAILER: 8, LOG_WEIGHTS: 9 };

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? (value >>> 1) ^ 0x82f63b78 : value >>> 1;
  return value >>> 0;
});

function crc32c(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = CRC_TABLE[(value ^ byte) & 0xff] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

// What the digest is fed with for one frame.
function digestEntry(frame, kind) {
  const entry = Buffer.alloc(28);
  entry.writeUInt32LE(frame.layer, 0);
  entry.writeUInt32LE(kind, 4);
  entry.writeBigUInt64LE(BigInt(frame.offset), 8);
  entry.writeBigUInt64LE(BigInt(frame.payload.length), 16);
  entry.writeUInt32LE(frame.checksum, 24);
  return entry;
}

class CacheReader {
  constructor() {
    this.digest = crypto.createHash('sha256');
    this.frames = 0;
    this.payloadBytes = 0;
    this.layers = [];
  }

  take(frame) {
    const name = frame.kind.replace('FRAME_KIND_', '');
    if (crc32c(frame.payload) !== frame.checksum) throw new Error(`${name}: wrong checksum`);
    if (name === 'HEADER') {
      this.header = JSON.parse(frame.payload);
      if (this.header.format_version !== 1) throw new Error('another format');
      this.digest.update(frame.payload);
    } else if (name === 'TRAILER') {
      this.finish(JSON.parse(frame.payload));
    } else {
      this.add(frame, name);
    }
  }

  add(frame, name) {
    this.digest.update(digestEntry(frame, KINDS[name]));
    this.frames += 1;
    this.payloadBytes += frame.payload.length;
    if (name === 'INDEX') {
      const index = JSON.parse(frame.payload);
      this.layers.push({ index, sections: Object.fromEntries(TENSORS.map((t) => [t, []])), sizes: {} });
    } else {
      const current = this.layers[frame.layer];
      if (BigInt(frame.offset) !== BigInt(current.sizes[name] || 0)) throw new Error('a gap');
      current.sizes[name] = (current.sizes[name] || 0) + frame.payload.length;
      current.sections[name].push(frame.payload);
    }
  }

  finish(trailer) {
    const rows = this.layers.flatMap(({ index }) => index.rows).reduce((a, b) => a + b, 0);
    const own = { frames: this.frames, payload_bytes: this.payloadBytes, rows };
    for (const [name, value] of Object.entries(own)) {
      if (trailer[name] !== value) throw new Error(`trailer: ${name} is ${value} here`);
    }
    if (trailer.sha256 !== this.digest.digest('hex')) throw new Error('trailer: wrong digest');
    this.whole = true;
  }

  // One head's rows, cut out of its layer.
  head(layerIndex, headIndex) {
    const { index, sections } = this.layers[layerIndex];
    const first = index.rows.slice(0, headIndex).reduce((a, b) => a + b, 0);
    const rows = index.rows[headIndex];
    const row = this.header.layers[layerIndex].head_size * ELEMENT_BYTES[this.header.fingerprint.model.dtype];
    const positions = Buffer.concat(sections.POSITIONS).subarray(4 * first, 4 * (first + rows));
    const cut = (name) => Buffer.concat(sections[name]).subarray(first * row, (first + rows) * row);
    return {
      positions: Array.from({ length: rows }, (_, at) => positions.readInt32LE(4 * at)),
      keys: cut('KEYS').toString('hex'),
      values: cut('VALUES').toString('hex'),
    };
  }
}

const reader = new CacheReader();
const client = new headwise.PrefillService(target, grpc.credentials.createInsecure());
const call = client.Prefill(
  { token_ids: tokens.map(Number), policy: { name: policy } },
  { deadline: Date.now() + 60_000 },
);

function fail(message) {
  process.stderr.write(`${message}\n`);
  process.exitCode = 1;
  call.cancel();
}

call.on('data', ({ frame }) => {
  try {
    if (frame) reader.take(frame);
  } catch (error) {
    fail(error.message);
  }
});
call.on('error', (error) => fail(`${grpc.status[error.code]}: ${error.details}`));
call.on('end', () => {
  client.close();
  if (!reader.whole) return fail('the stream ended before its trailer');
  return process.stdout.write(JSON.stringify(reader.head(Number(layer), Number(head))));
});
