/** Where the cells of a drawing's tokens lie: a picture's row by row, a clip's frame by frame, its frames side by side. */

/**
 * The sheet of a model as `/v1/models` describes it; null if nobody knows the rows of its tokens. Forced tokens, such as row ends,
 * have cells, too. `frame` is [rows, columns] of one frame, `width` and `height` are those of all, in cells, with one between frames.
 */
export function sheetOf({ grid, token_frames, length }) {
  if (!grid) return null;
  const frames = Math.max(1, token_frames), each = Math.ceil(length / frames);
  const columns = Math.floor(each / grid[0]), rows = Math.ceil(each / columns);
  const across = Math.min(frames, Math.ceil(Math.sqrt((frames * rows) / columns))), down = Math.ceil(frames / across);
  return {
    frame: [rows, columns],
    width: across * (columns + 1) - 1,
    height: down * (rows + 1) - 1,
    /** [x, y] of the cell of a token. */
    at(token) {
      const frame = Math.floor(token / each), within = token % each;
      const x = (frame % across) * (columns + 1) + (within % columns);
      return [x, Math.floor(frame / across) * (rows + 1) + Math.floor(within / columns)];
    },
  };
}
