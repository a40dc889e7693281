// A canvas to draw on: black on white, as sketches in the training sets are.

const byId = (id) => document.getElementById(id);

/** Prepare the dialog. done: is called with a PNG Blob of the drawing. */
export function prepareSketch(done) {
  const [dialog, canvas, pen] = [byId("sketch"), byId("canvas"), byId("pen")];
  const context = canvas.getContext("2d");
  let strokes = [];

  const redraw = () => {
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    for (const { width, points } of strokes) {
      Object.assign(context, { lineWidth: width, lineCap: "round", lineJoin: "round", strokeStyle: "#000" });
      context.beginPath();
      context.moveTo(...points[0]);
      for (const point of points.length > 1 ? points : [...points, points[0]]) context.lineTo(...point);
      context.stroke();
    }
    byId("use").disabled = byId("undo").disabled = byId("clear").disabled = !strokes.length;
  };
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [
      ((event.clientX - box.left) * canvas.width) / box.width,
      ((event.clientY - box.top) * canvas.height) / box.height,
    ];
  };

  let drawing = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (drawing) return;
    canvas.setPointerCapture(event.pointerId);
    drawing = { pointer: event.pointerId, width: Number(pen.value), points: [place(event)] };
    strokes.push(drawing);
    redraw();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerId !== drawing?.pointer) return;
    drawing.points.push(...(event.getCoalescedEvents?.() ?? [event]).map(place));
    redraw();
  });
  for (const end of ["pointerup", "pointercancel"])
    canvas.addEventListener(end, (event) => event.pointerId === drawing?.pointer && (drawing = null));
  byId("undo").addEventListener("click", () => (strokes.pop(), redraw()));
  byId("clear").addEventListener("click", () => ((strokes = []), redraw()));
  byId("cancel").addEventListener("click", () => dialog.close());
  byId("use").addEventListener("click", () => {
    dialog.close();
    canvas.toBlob(done, "image/png");
  });
  byId("draw").addEventListener("click", () => {
    redraw();
    dialog.showModal();
  });
}
