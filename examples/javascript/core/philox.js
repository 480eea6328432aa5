/**
 * The noise of coupled_sampling/noise.py, whose module page fixes the layout: Philox 4x64 with 10 rounds (Salmon et al.
 * 2011), a pure function of seed, sequence, position, round and purpose. A 64-bit word is two 32-bit halves, low one first:
 * with BigInt this file is shorter and some four times slower.
 */

const SCALE = 2 ** 32;

/** High half of the product of two 32-bit numbers; `Math.imul` gives the low one. */
function high(a, b) {
  const a0 = a & 0xffff, a1 = a >>> 16, b0 = b & 0xffff, b1 = b >>> 16;
  const first = a1 * b0 + ((a0 * b0) >>> 16);
  const second = a0 * b1 + (first & 0xffff);
  return a1 * b1 + (first >>> 16) + (second >>> 16);
}

/** The 128 bits of (m1, m0) times (x1, x0) into `out`, low quarter first; a Uint32Array takes numbers modulo 2^32. */
function multiply(out, m0, m1, x0, x1) {
  const second = high(m0, x0) + (Math.imul(m0, x1) >>> 0) + (Math.imul(m1, x0) >>> 0);
  const third = high(m0, x1) + high(m1, x0) + (Math.imul(m1, x1) >>> 0) + Math.floor(second / SCALE);
  out[0] = Math.imul(m0, x0);
  out[1] = second;
  out[2] = third;
  out[3] = high(m1, x1) + Math.floor(third / SCALE);
}

const left = new Uint32Array(4), right = new Uint32Array(4);

/** One block: the counter `x`, four words as Uint32Array(8), becomes four random words. `key` is two as Uint32Array(4). */
export function philox(x, key) {
  let k0 = key[0], k1 = key[1], k2 = key[2], k3 = key[3];
  for (let round = 0; round < 10; round++) {
    multiply(left, 0xe14c6c93, 0xd2e7470e, x[0], x[1]);
    multiply(right, 0x95121157, 0xca5a8263, x[4], x[5]);
    x[0] = right[2] ^ x[2] ^ k0;
    x[1] = right[3] ^ x[3] ^ k1;
    x[4] = left[2] ^ x[6] ^ k2;
    x[5] = left[3] ^ x[7] ^ k3;
    x[2] = right[0];
    x[3] = right[1];
    x[6] = left[0];
    x[7] = left[1];
    k0 += 0x7f4a7c15;
    k1 = (k1 + 0x9e3779b9 + (k0 >= SCALE ? 1 : 0)) >>> 0;
    k2 += 0x84caa73b;
    k3 = (k3 + 0xbb67ae85 + (k2 >= SCALE ? 1 : 0)) >>> 0;
    k0 >>>= 0;
    k2 >>>= 0;
  }
  return x;
}

/** Seed and sequence, BigInts or integers in [0, 2^64), as a key. */
function asKey(seed, sequence) {
  const words = [BigInt(seed), BigInt(sequence)];
  if (words.some((word) => word !== BigInt.asUintN(64, word))) {
    throw new RangeError(`seed and sequence are ${seed} and ${sequence}, expected integers in [0, 2^64)`);
  }
  return new Uint32Array(BigUint64Array.from(words).buffer);
}

const block = new Uint32Array(8);

/** The block of a counter whose words are integers below 2^53; valid until the next call. */
function blockAt(key, first, second, third) {
  block.set([first, first / SCALE, second, second / SCALE, third, 0, 0, 0]);
  return philox(block, key);
}

/** Uniforms of `count` positions from `first` on: Float64Array, 4 each, in the order accept, residual, redraft, propose. */
export function uniforms(seed, sequence, round, first, count) {
  const key = asKey(seed, sequence), drawn = new Float64Array(4 * count);
  for (let i = 0; i < drawn.length; i += 4) {
    const words = blockAt(key, first + i / 4 + 1, round, 0);
    for (let purpose = 0; purpose < 4; purpose++) {
      drawn[i + purpose] = (words[2 * purpose + 1] * 2 ** 21 + (words[2 * purpose] >>> 11)) * 2 ** -53;
    }
  }
  return drawn;
}

/** exp of the position's Gumbel noise, one per token: Float64Array(vocabulary). */
export function raceWeights(seed, sequence, position, vocabulary) {
  const key = asKey(seed, sequence), weights = new Float64Array(vocabulary);
  for (let token = 0; token < vocabulary; token += 4) {
    const words = blockAt(key, token / 4 + 1, position, 1);
    for (let i = 0; i < 4 && token + i < vocabulary; i++) {
      const uniform = (words[2 * i + 1] * 2 ** 20 + (words[2 * i] >>> 12) + 0.5) * 2 ** -52;
      weights[token + i] = -1 / Math.log(uniform);
    }
  }
  return weights;
}
