// mqtt.js, driven as README.md says.
const fs = require("fs");
const readline = require("readline");
const mqtt = require("mqtt");

const say = (event, fields) => console.log(JSON.stringify({ event, ...fields }));
const input = readline.createInterface({ input: process.stdin });
input.once("line", (line) => run(JSON.parse(line)));

function run(spec) {
  const client = mqtt.connect({
    protocol: (spec.path ? "ws" : "mqtt") + (spec.ca ? "s" : ""),
    path: spec.path ?? undefined,
    host: spec.host,
    port: spec.port,
    ca: spec.ca ? fs.readFileSync(spec.ca) : undefined,
    protocolVersion: spec.version,
    clientId: spec.client_id,
    username: spec.username,
    password: spec.password,
    clean: true,
    reconnectPeriod: 0,
    connectTimeout: 20000,
  });
  client.on("packetreceive", (packet) => {
    if (packet.cmd === "connack") say("connack", { code: spec.version === 5 ? packet.reasonCode : packet.returnCode });
    if (packet.cmd === "puback") say("puback", { code: packet.reasonCode ?? 0 });
    if (packet.cmd === "suback") say("suback", { codes: [...packet.granted] });
    if (packet.cmd === "disconnect") say("disconnect", { code: packet.reasonCode ?? 0 });
  });
  client.on("message", (topic, payload, packet) =>
    say("message", { topic, payload: payload.toString("base64"), qos: packet.qos }));
  client.on("error", (error) => console.error(error.message));
  let ending = false;
  client.on("close", () => {
    if (!ending) {
      say("closed");
      process.exit(1);
    }
  });
  const end = () => {
    ending = true;
    client.end(false, {}, () => process.exit(0));
  };
  client.on("connect", async () => {
    for (const { filter, qos } of spec.subscribe) {
      await client.subscribeAsync(filter, { qos }).catch((error) => console.error(error.message));
    }
    for (const { topic, payload, qos, retain } of spec.publish) {
      const bytes = Buffer.from(payload, "base64");
      await client.publishAsync(topic, bytes, { qos, retain }).catch((error) => console.error(error.message));
    }
    say("done");
    if (spec.stay) input.once("close", end);
    else end();
  });
}
