// A matching engine: sends the events of standard input, one per line, prints each ADL round, and ends once all is settled.
import { createInterface } from "node:readline";
import { Engine } from "./fundsvc.js";

const engine = await Engine.open(process.env["FUNDSVC_API"]!, () => process.env["FUNDSVC_TOKEN"]!, (rejected) => {
  console.log(JSON.stringify(rejected));
});

async function print(): Promise<void> {
  for await (const round of engine.rounds()) console.log(JSON.stringify(round));
}

void print();
for await (const line of createInterface({ input: process.stdin })) engine.send(JSON.parse(line));
await engine.settled();
process.exit();
