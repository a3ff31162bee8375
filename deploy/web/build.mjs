// Builds the page: stubs from the contract into gen/, then everything a browser needs into dist/.
//
//   npm run build      (PYTHON names the interpreter of Reprise's environment, which brings protoc)

import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, readdirSync, rmSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const protos = join(here, "..", "..", "protos");
const gen = join(here, "gen");
const dist = join(here, "dist");
const python = process.env.PYTHON ?? "python3";

function run(...command) {
  return execFileSync(python, command, {
    encoding: "utf8",
    // The plugin is a script that looks for `node`: this very one.
    env: { ...process.env, PATH: `${dirname(process.execPath)}${delimiter}${process.env.PATH}` },
    stdio: ["ignore", "pipe", "inherit"],
  });
}

function stubs() {
  // google/rpc lies beside the packages of the Python environment.
  const packages = run("-c", "import pathlib, google.rpc.status_pb2 as m; print(pathlib.Path(m.__file__).parents[2])");
  const contract = readdirSync(join(protos, "reprise", "v1")).filter((name) => name.endsWith(".proto"));
  rmSync(gen, { recursive: true, force: true });
  mkdirSync(gen);
  run(
    ...["-m", "grpc_tools.protoc", `-I${protos}`, `-I${packages.trim()}`],
    `--plugin=protoc-gen-es=${join(here, "node_modules", ".bin", "protoc-gen-es")}`,
    ...[`--es_out=${gen}`, "--es_opt=target=js,import_extension=js"],
    ...contract.map((name) => `reprise/v1/${name}`),
    "google/rpc/error_details.proto",
  );
}

async function bundle() {
  rmSync(dist, { recursive: true, force: true });
  await build({
    entryPoints: [join(here, "src", "main.js")],
    outfile: join(dist, "main.js"),
    bundle: true,
    format: "esm",
    legalComments: "none",
    logLevel: "warning",
    minify: true,
    target: "es2022",
  });
  for (const file of ["index.html", "style.css"]) {
    cpSync(join(here, file), join(dist, file));
  }
}

stubs();
await bundle();
