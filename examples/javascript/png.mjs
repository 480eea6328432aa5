/** A PNG of raw pixels, animated where there are several frames, without dependencies. */

import { crc32, deflateSync } from "node:zlib";

const COLOUR_TYPES = { 1: 0, 3: 2 };

function chunk(kind, data) {
  const body = Buffer.concat([Buffer.from(kind, "latin1"), data]), framed = Buffer.alloc(body.length + 8);
  framed.writeUInt32BE(data.length, 0);
  body.copy(framed, 4);
  framed.writeUInt32BE(crc32(body), body.length + 4);
  return framed;
}

const words = (...values) => Buffer.from(new Uint32Array(values).buffer).swap32();

/** Compressed lines of `pixels`, height x width x channels, each of them shown as `zoom` x `zoom`. */
function compressed(pixels, { height, width, channels }, zoom) {
  const stride = 1 + width * zoom * channels, lines = Buffer.alloc(stride * height * zoom);
  for (let y = 0; y < height * zoom; y++) {
    for (let x = 0; x < width * zoom; x++) {
      const source = (Math.floor(y / zoom) * width + Math.floor(x / zoom)) * channels;
      lines.set(pixels.subarray(source, source + channels), y * stride + 1 + x * channels);
    }
  }
  return deflateSync(lines);
}

/**
 * The file's bytes. Every frame is height x width x channels (1 grey or 3 RGB); `fps` of them are shown in a second, again and again.
 * A program that knows no animations shows the first one.
 */
export function png(frames, shape, zoom, fps) {
  const [width, height] = [shape.width * zoom, shape.height * zoom], animated = frames.length > 1;
  const header = Buffer.concat([words(width, height), Buffer.from([8, COLOUR_TYPES[shape.channels], 0, 0, 0])]);
  const parts = [Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]), chunk("IHDR", header)];
  if (animated) parts.push(chunk("acTL", words(frames.length, 0))); // 0: without end
  let sequence = 0;
  frames.forEach((pixels, i) => {
    // At the left and at the top, for 1 / fps seconds, in the place of what was there.
    const timing = Buffer.from([0, 1, 0, fps, 0, 0]);
    if (animated) parts.push(chunk("fcTL", Buffer.concat([words(sequence++, width, height, 0, 0), timing])));
    const data = compressed(pixels, shape, zoom);
    parts.push(i ? chunk("fdAT", Buffer.concat([words(sequence++), data])) : chunk("IDAT", data));
  });
  return Buffer.concat([...parts, chunk("IEND", Buffer.alloc(0))]);
}
