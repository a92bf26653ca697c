// graphile-worker, driven by a few words on standard input, answering with a line of JSON each. Its settings are those that
// made it fastest on the machine where they were tried; what differs from its defaults stands in `best`.
//
//   submit N BATCH CLIENTS   adds N jobs in calls of BATCH, CLIENTS at a time; {"ms"}
//   work best|default        runs a worker until its input ends; {"ready": true}
//   pickup N                 one job at a time through an idle worker in this process; {"from_call_us", "from_commit_us"}
"use strict";

const readline = require("node:readline");
const { Logger, WorkerPreset, makeWorkerUtils, run } = require("graphile-worker");

const connectionString = process.argv[2];
const logger = new Logger(() => (level, message) => {
  if (level === "error") process.stderr.write(`${message}\n`);
});
const best = { concurrentJobs: 24, localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 };

const say = (answer) => process.stdout.write(`${JSON.stringify(answer)}\n`);

function start(settings, task) {
  const preset = { extends: [WorkerPreset], worker: { ...settings, connectionString, maxPoolSize: 10, logger } };
  return run({ preset, noHandleSignals: true, taskList: { noop: task } });
}

async function submit(jobs, batch, clients) {
  const utils = await makeWorkerUtils({ connectionString, maxPoolSize: clients, logger });
  await utils.migrate();
  let left = jobs;
  const client = async () => {
    while (left > 0) {
      const count = Math.min(batch, left);
      left -= count;
      await utils.addJobs(Array.from({ length: count }, () => ({ identifier: "noop", payload: { value: 1 } })));
    }
  };
  const started = process.hrtime.bigint();
  await Promise.all(Array.from({ length: clients }, client));
  say({ ms: Number(process.hrtime.bigint() - started) / 1e6 });
  await utils.release();
}

async function pickup(count) {
  let begun;
  const runner = await start(best, async () => begun(process.hrtime.bigint()));
  const fromCall = [];
  const fromCommit = [];
  // The first ones warm both sides up and are not counted.
  for (let n = -20; n < count; n += 1) {
    const beginning = new Promise((resolve) => { begun = resolve; });
    const called = process.hrtime.bigint();
    await runner.addJob("noop", { value: 1 });
    const answered = process.hrtime.bigint();
    const at = await beginning;
    if (n >= 0) {
      fromCall.push(Number(at - called) / 1e3);
      fromCommit.push(Number(at - answered) / 1e3);
    }
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  say({ from_call_us: fromCall, from_commit_us: fromCommit });
  await runner.stop();
}

async function obey(words) {
  switch (words[0]) {
    case "submit":
      return submit(Number(words[1]), Number(words[2]), Number(words[3]));
    case "work": {
      const runner = await start(words[1] === "best" ? best : { concurrentJobs: 1 }, async () => {});
      lines.on("close", () => runner.stop());
      // Idle first, so that its start is no part of what is measured.
      return say({ ready: true });
    }
    case "pickup":
      return pickup(Number(words[1]));
    default:
      throw new Error(`unknown word ${words[0]}`);
  }
}

const lines = readline.createInterface({ input: process.stdin });
lines.on("line", (line) => {
  obey(line.split(" ")).catch((error) => {
    process.stderr.write(`${error.stack}\n`);
    process.exit(1);
  });
});
