// mqtt.js as a device that publishes without end and is handed one token after the other. A line of JSON on standard input is a
// command; what happens is said in lines on standard output, as README.md has them.
const readline = require("readline");
const mqtt = require("mqtt");

const say = (event, fields) => console.log(JSON.stringify({ event, ...fields }));
const acknowledged = [];
let client, leaving, connection = 0, number = 0, waiting = 0;

const commands = {
  // A client a token: one that was being ended when the gateway ended it, too, does not connect again.
  connect({ password, host, port, version, client_id: clientId, topic, every }) {
    if (!client) setInterval(() => publish(topic), every);
    else client.removeAllListeners().on("error", () => {}).end(true);
    leaving = false;
    waiting = 0;
    const mine = ++connection;
    client = mqtt.connect({
      host, port, protocolVersion: version, clientId, username: clientId, password, reconnectPeriod: 0, connectTimeout: 20000,
    });
    client.on("packetreceive", (packet) => {
      if (packet.cmd === "connack") say("connack", { code: version === 5 ? packet.reasonCode : packet.returnCode });
      if (packet.cmd === "disconnect") say("disconnect", { code: packet.reasonCode });
    });
    client.on("close", () => leaving || say("closed", { connection: mine }));
    client.on("error", () => {});
  },
  leave() {
    leaving = true;
    let said = false;
    const left = () => said || ((said = true), say("left"));
    // `end` does not call back where the connection ends by itself meanwhile.
    if (!client.connected) return left();
    client.once("close", left);
    client.end(false, {}, left);
  },
  report: () => say("report", { acknowledged }),
};

function publish(topic) {
  if (!client.connected || leaving || waiting >= 10) return;
  const mine = number++, by = client;
  waiting++;
  client.publish(topic, String(mine), { qos: 1 }, (error, packet) => {
    if (by === client) waiting--;
    if (!error && !(packet?.reasonCode >= 0x80)) acknowledged.push(mine);
  });
}

const input = readline.createInterface({ input: process.stdin });
input.on("line", (line) => {
  const command = JSON.parse(line);
  commands[command.do](command);
});
input.on("close", () => process.exit(0));
