/** A PNG of raw pixels, without dependencies. */

import { crc32, deflateSync } from "node:zlib";

const COLOUR_TYPES = { 1: 0, 3: 2 };

function chunk(kind, data) {
  const body = Buffer.concat([Buffer.from(kind, "latin1"), data]), framed = Buffer.alloc(body.length + 8);
  framed.writeUInt32BE(data.length, 0);
  body.copy(framed, 4);
  framed.writeUInt32BE(crc32(body), body.length + 4);
  return framed;
}

/** The file's bytes: `pixels` are height x width x channels (1 grey or 3 RGB), each shown as `zoom` x `zoom`. */
export function png(pixels, { height, width, channels }, zoom) {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width * zoom, 0);
  header.writeUInt32BE(height * zoom, 4);
  header.set([8, COLOUR_TYPES[channels]], 8);
  const stride = 1 + width * zoom * channels, lines = Buffer.alloc(stride * height * zoom);
  for (let y = 0; y < height * zoom; y++) {
    for (let x = 0; x < width * zoom; x++) {
      const source = (Math.floor(y / zoom) * width + Math.floor(x / zoom)) * channels;
      lines.set(pixels.subarray(source, source + channels), y * stride + 1 + x * channels);
    }
  }
  const signature = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
  const end = chunk("IEND", Buffer.alloc(0));
  return Buffer.concat([signature, chunk("IHDR", header), chunk("IDAT", deflateSync(lines)), end]);
}
