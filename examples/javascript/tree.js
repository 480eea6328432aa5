/** The drawing of one step's drafts: the path on top, from left to right, below it the branches; what held stands out. */

/**
 * Where drafts go: the column says how many drafts stand before each, and the lane how far below the path it is drawn. The first
 * draft behind one of a branch is in the same lane; others take the first lane in which nothing is in the way.
 * @param {{path: number, parents: number[]}} tree as `decode` yields it
 */
export function layOut({ path, parents }) {
  const columns = [], runs = [];
  parents.forEach((parent, draft) => {
    columns.push(parent < 0 ? 0 : columns[parent] + 1);
    if (draft < path) return;
    const run = runs.find(({ drafts }) => drafts.at(-1) === parent);
    if (run) run.drafts.push(draft);
    else runs.push({ parent, drafts: [draft] });
  });
  const lanes = new Array(path).fill(0), taken = [];
  for (const { parent, drafts } of runs) {
    const from = columns[drafts[0]] - 1, to = columns[drafts.at(-1)]; // the line to it takes the column before
    let lane = parent < path ? 1 : lanes[parent] + 1;
    while (taken[lane]?.some(([first, last]) => first <= to && from <= last)) lane += 1;
    (taken[lane] ??= []).push([from, to]);
    for (const draft of drafts) lanes[draft] = lane;
  }
  return { columns, lanes };
}

/**
 * Draw a tree.
 * @param context of a canvas, which is `width` by `height`
 * @param {number} least columns to leave room for, so that drawings of several steps have one scale
 * @param {{quiet: string, accent: string}} colours of drafts, and of those that held
 * @param {number} scale of a pixel
 */
export function drawTree(context, { width, height }, tree, least, { quiet, accent }, scale = 1) {
  const { columns, lanes } = layOut(tree), wide = Math.max(least, ...columns.map((column) => column + 2));
  const pitch = width / wide, tall = Math.min(9 * scale, height / (Math.max(0, ...lanes) + 1.5));
  const radius = Math.min(2.4 * scale, 0.36 * pitch, 0.36 * tall);
  const at = (draft) => (draft < 0 ? [0.5 * pitch, 0.75 * tall] : [(columns[draft] + 1.5) * pitch, (lanes[draft] + 0.75) * tall]);
  const draw = (drafts, colour, bold) => {
    context.strokeStyle = context.fillStyle = colour;
    context.lineWidth = (bold ? 2 : 1) * scale;
    context.beginPath();
    for (const draft of drafts) {
      const [x, y] = at(draft), [fromX, fromY] = at(tree.parents[draft]);
      context.moveTo(fromX, fromY);
      context.lineTo(x - 0.5 * pitch, y); // down first, then along the lane
      context.lineTo(x, y);
    }
    context.stroke();
    context.beginPath();
    for (const [x, y] of drafts.map(at)) {
      context.moveTo(x, y);
      context.arc(x, y, bold ? 1.35 * radius : radius, 0, 2 * Math.PI);
    }
    context.fill();
  };
  context.clearRect(0, 0, width, height);
  const held = new Set(tree.walked);
  draw(tree.parents.map((_, draft) => draft).filter((draft) => !held.has(draft)), quiet, false);
  draw(tree.walked, accent, true);
  // The token that was committed last is no draft.
  const [x, y] = at(-1);
  context.fillStyle = accent;
  context.fillRect(x - 1.5 * radius, y - 1.5 * radius, 3 * radius, 3 * radius);
}
