// Runs the Khronos glTF validator over GLB files and prints one JSON line for each:
//   {"file", "errors", "warnings", "infos", "hints", "codes"}
// Usage: node validate-gltf.mjs DIR FILE...     DIR holds node_modules with the npm package `gltf-validator`.

import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";

const [directory, ...files] = process.argv.slice(2);
if (directory === undefined || files.length === 0) {
  console.error("usage: node validate-gltf.mjs DIR FILE...");
  process.exit(64);
}
const { validateBytes } = createRequire(join(resolve(directory), "package.json"))("gltf-validator");

for (const file of files) {
  const report = await validateBytes(new Uint8Array(await readFile(file)));
  const { numErrors, numWarnings, numInfos, numHints, messages } = report.issues;
  const codes = [...new Set(messages.map((message) => message.code))];
  console.log(
    JSON.stringify({ file, errors: numErrors, warnings: numWarnings, infos: numInfos, hints: numHints, codes }),
  );
}
