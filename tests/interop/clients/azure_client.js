// The official Azure IoT device SDK for Node, unmodified. A line of JSON on standard input is a command, each is answered with
// an event on standard output: {"event": "done" | "error", "do", …}; what comes by itself is an event, too.
const fs = require("fs");
const net = require("net");
const readline = require("readline");
const { Client, ModuleClient, Message, SharedAccessKeyAuthenticationProvider } = require("azure-iot-device");
const { Mqtt, MqttWs } = require("azure-iot-device-mqtt");

const say = (event, fields) => console.log(JSON.stringify({ event, ...fields }));
let client, twin, streaming = false;
const acknowledged = [];

// The SDK knows the ports 8883 and 443 alone; a test's gateway has others.
function lead(ports) {
  const connect = net.Socket.prototype.connect;
  net.Socket.prototype.connect = function (...given) {
    const options = Array.isArray(given[0]) ? given[0][0] : given[0];
    if (options && ports[options.port]) options.port = ports[options.port];
    return connect.apply(this, given);
  };
}

function make({ connection_string: text, sas, transport, ttl, margin }) {
  const kind = transport === "websocket" ? MqttWs : Mqtt;
  if (sas) return Client.fromSharedAccessSignature(sas, kind);
  if (text.includes("ModuleId=")) return ModuleClient.fromConnectionString(text, kind);
  if (!ttl) return Client.fromConnectionString(text, kind);
  return Client.fromAuthenticationProvider(SharedAccessKeyAuthenticationProvider.fromConnectionString(text, ttl, margin), kind);
}

const commands = {
  async open(how) {
    lead(how.ports);
    client = make(how);
    // Once: the SDK would try again for minutes.
    if (!how.retries) client.setRetryPolicy(new (require("azure-iot-common").NoRetry)());
    await client.setOptions({ ca: fs.readFileSync(how.ca, "utf8") });
    client.on("disconnect", () => {
      streaming = false;
      say("disconnect");
    });
    client.on("error", (error) => say("client error", { name: error.name }));
    await client.open();
  },
  async send({ payload, properties, system, output }) {
    const message = new Message(Buffer.from(payload, "base64"));
    Object.assign(message, system);
    Object.entries(properties ?? {}).forEach(([name, value]) => message.properties.add(name, value));
    await (output ? client.sendOutputEvent(output, message) : client.sendEvent(message));
  },
  async messages() {
    client.on("message", (message) => {
      const properties = Object.fromEntries(message.properties.propertyList.map(({ key, value }) => [key, value]));
      const { messageId, contentType } = message;
      say("message", { payload: message.data.toString("base64"), properties, messageId, contentType });
      client.complete(message, () => {});
    });
  },
  async twin() {
    twin = await client.getTwin();
    const { desired, reported } = twin.properties;
    const plain = (value) => JSON.parse(JSON.stringify(value, (key, inner) => (key === "update" ? undefined : inner)));
    say("twin", { desired: plain(desired), reported: plain(reported) });
    twin.on("properties.desired", (delta) => say("desired", { delta }));
  },
  report: ({ patch }) =>
    new Promise((resolve, reject) => twin.properties.reported.update(patch, (error) => (error ? reject(error) : resolve()))),
  async method({ name, status }) {
    const handle = (request, response) => {
      say("method", { name: request.methodName, payload: request.payload });
      response.send(status, { did: request.payload }, (error) => error && say("error", { do: "answer", name: error.name }));
    };
    (client.onDeviceMethod ?? client.onMethod).call(client, name, handle);
  },
  // Telemetry from here on, as long as it is connected; never in the way of another command.
  async stream({ every }) {
    streaming = true;
    let number = acknowledged.length ? acknowledged[acknowledged.length - 1] + 1000 : 0;
    const timer = setInterval(() => {
      if (!streaming) return clearInterval(timer);
      const mine = number++;
      client.sendEvent(new Message(String(mine))).then(() => acknowledged.push(mine)).catch(() => {});
    }, every);
  },
  renew: ({ sas }) => client.updateSharedAccessSignature(sas),
  // What of the stream was.
  async acknowledged() {
    say("acknowledged", { acknowledged });
  },
  close: () => client.close(),
};

// One after the other, in their order.
let last = Promise.resolve();
const input = readline.createInterface({ input: process.stdin });
input.on("line", (line) => {
  const command = JSON.parse(line);
  last = last
    .then(() => commands[command.do](command))
    .then(() => say("done", { do: command.do }))
    .catch((error) => say("error", { do: command.do, name: error.name, message: String(error.message) }));
});
input.on("close", () => process.exit(0));
