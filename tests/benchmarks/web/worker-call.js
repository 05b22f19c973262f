/** Calls into a worker of the benchmarks: one message there with {id, method, params}, one back with {id, result | error}. */
export function caller(url) {
  const worker = new Worker(url, { type: "module" });
  const calls = new Map();
  let lastId = 0;
  const settle = ({ id, result, error }) => {
    const { resolve, reject } = calls.get(id);
    calls.delete(id);
    if (error) reject(new Error(error)); // of the worker, with its traceback
    else resolve(result);
  };
  worker.addEventListener("message", ({ data }) => calls.has(data?.id) && "id" in data && settle(data));
  worker.onerror = ({ message }) => [...calls.keys()].forEach((id) => settle({ id, error: message ?? "the worker died" }));
  const call = (method, params = {}) =>
    new Promise((resolve, reject) => {
      calls.set((lastId += 1), { resolve, reject });
      worker.postMessage({ id: lastId, method, params });
    });
  return { call, worker };
}
