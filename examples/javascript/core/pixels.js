/** Pictures of tokens, by a bundle's pixel graph. */

import * as ort from "onnxruntime-web";

/**
 * A picture of all `length` tokens, which must be generated ones.
 * @returns {Promise<Uint8Array>} height x width x channels
 */
export async function drawPixels(session, manifest, tokens) {
  const { first, count } = manifest.generated_tokens;
  const outside = tokens.find((token) => token < first || token >= first + count);
  if (outside !== undefined) throw new RangeError(`token ${outside} has no pixels, expected [${first}, ${first + count})`);
  const input = new ort.Tensor("int64", BigInt64Array.from(tokens, BigInt), [1, tokens.length]);
  return (await session.run({ tokens: input })).pixels.data;
}
