// mqtt.js, driven as README.md says.
const fs = require("fs");
const readline = require("readline");
const mqtt = require("mqtt");

const say = (event, fields) => console.log(JSON.stringify({ event, ...fields }));
const input = readline.createInterface({ input: process.stdin });
let order = (line) => run(JSON.parse(line));
input.on("line", (line) => order(line));

function run(spec) {
  const client = mqtt.connect({
    protocol: (spec.path ? "ws" : "mqtt") + (spec.ca ? "s" : ""),
    path: spec.path ?? undefined,
    host: spec.host,
    port: spec.port,
    ca: spec.ca ? fs.readFileSync(spec.ca) : undefined,
    minVersion: spec.tls_version ? `TLSv${spec.tls_version}` : undefined,
    maxVersion: spec.tls_version ? `TLSv${spec.tls_version}` : undefined,
    protocolVersion: spec.version,
    clientId: spec.client_id,
    username: spec.username,
    password: spec.password,
    keepalive: spec.keep_alive,
    clean: spec.clean,
    properties: spec.version === 5 ? { sessionExpiryInterval: spec.expiry } : undefined,
    will: spec.will ? { ...spec.will, payload: Buffer.from(spec.will.payload, "base64") } : undefined,
    reconnectPeriod: spec.reconnect ? 300 : 0,
    connectTimeout: 20000,
  });
  client.on("packetreceive", (packet) => {
    if (packet.cmd === "connack") {
      const code = spec.version === 5 ? packet.reasonCode : packet.returnCode;
      if (code === 0) say("session", { present: packet.sessionPresent });
      say("connack", { code });
    }
    if (packet.cmd === "puback" || packet.cmd === "pubcomp") say(packet.cmd, { code: packet.reasonCode ?? 0 });
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
      if (!spec.reconnect) process.exit(1);
    }
  });
  const end = () => {
    ending = true;
    client.end(false, {}, () => process.exit(0));
  };
  client.once("connect", async () => {
    for (const { filter, qos } of spec.subscribe) {
      await client.subscribeAsync(filter, { qos }).catch((error) => console.error(error.message));
    }
    const publish = ({ topic, payload, qos, retain }) =>
      client.publishAsync(topic, Buffer.from(payload, "base64"), { qos, retain }).catch((error) => console.error(error.message));
    const pipeline = (messages) => Promise.all(messages.map(publish)).then(() => say("done"));
    for (const message of spec.publish) await publish(message);
    order = (line) => pipeline(JSON.parse(line));
    await pipeline(spec.pipelined);
    if (spec.stay) input.once("close", end);
    else end();
  });
}
