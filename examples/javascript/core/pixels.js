/** Pictures and clips of tokens, by a bundle's pixel graph. */

/**
 * The frames of all `length` tokens, which must be generated ones; a picture is one frame.
 * @returns {Promise<Uint8Array[]>} height x width x channels each
 */
export async function drawFrames(session, manifest, tokens) {
  const { first, count } = manifest.generated_tokens, { height, width, channels, frames } = manifest.pixel_graph;
  const outside = tokens.find((token) => token < first || token >= first + count);
  if (outside !== undefined) throw new RangeError(`token ${outside} has no pixels, expected [${first}, ${first + count})`);
  const { pixels } = await session.run({ tokens: session.integers(tokens, 1, tokens.length) });
  const { data } = pixels, size = height * width * channels;
  return Array.from({ length: frames || 1 }, (_, i) => data.subarray(i * size, (i + 1) * size));
}
