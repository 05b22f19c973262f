/** A worker that only passes messages on: what a port costs without an engine behind it. */
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
let kept = [];

const FRAME = { type: "frames", id: 1, frames: [{ id: 1, seq: 1, ts: 1.8e12, runId: "x".repeat(26), kind: "step_status", name: "step 1", status: "completed", attempt: 1, index: 1, duration: 0.001 }] };

const methods = {
  echo: ({ text }) => text,
  keep({ frames }) {
    kept = frames;
  },
  batches({ batch }) {
    for (let start = 0; start < kept.length; start += batch) postMessage(kept.slice(start, start + batch));
  },
  async messages({ count, pause: milliseconds }) {
    for (let number = 0; number < count; number += 1) {
      postMessage(JSON.stringify({ ...FRAME, sent: performance.timeOrigin + performance.now() }));
      await pause(milliseconds);
    }
  },
};

self.onmessage = async ({ data: { id, method, params } }) => {
  try {
    postMessage({ id, result: await methods[method](params) });
  } catch (error) {
    postMessage({ id, error: String(error?.stack ?? error) });
  }
};
