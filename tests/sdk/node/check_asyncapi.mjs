// Prints what AsyncAPI's own parser finds in a document.
import { readFileSync } from "node:fs";
import { Parser } from "@asyncapi/parser";

const { diagnostics } = await new Parser().parse(readFileSync(process.argv[2], "utf8"));
console.log(JSON.stringify(diagnostics.map(({ code, message, path }) => `${code} at ${path.join(".")}: ${message}`)));
