//! The gateway in a process of its own, with files of its own.

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::ClientConfig;

use super::{
    ClientIdentity, Device, Login, Process, Version, device_key, folder, found_in, free_port, remember_files, sas,
    token::ISSUER_SECRET, until, until_some,
};

/// What a gateway is to be like; [`Plan::start`] makes it so.
pub struct Plan {
    hub: Hub,
    shards: usize,
    connections: usize,
    window: usize,
    devices: Vec<String>,
    limits: String,
    hub_lines: String,
    credentials: String,
    ack: Option<&'static str>,
    more_identities: String,
    skew_seconds: u64,
    gateway_lines: String,
    starts: Starts,
}

/// How its process is started, apart from its files.
#[derive(Default)]
struct Starts {
    environment: Vec<(String, String)>,
    /// Listening sockets that are passed to it, as systemd does.
    held: Vec<TcpListener>,
}

/// Where it forwards to.
#[derive(Clone, Copy)]
pub enum Hub {
    /// The one inside.
    Embedded,
    /// One that listens on this port of loopback.
    At(u16, Version),
    /// The same behind TLS, under the name localhost.
    Tls(u16, Version),
    /// Behind WebSocket.
    Web(u16, Version),
    /// Behind WebSocket over TLS, under the name localhost.
    WebTls(u16, Version),
    /// On the IPv6 address of loopback.
    AtV6(u16, Version),
    /// Behind WebSocket, there.
    WebV6(u16, Version),
}

/// Whose MQTT client speaks to the hub.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HubClient {
    /// The gateway's own session.
    Native,
    /// The library.
    Rumqttc,
}

/// A gateway that runs.
pub struct Gateway {
    /// The process.
    pub process: Process,
    /// Its files.
    pub folder: PathBuf,
    /// The TCP listener.
    pub tcp: SocketAddr,
    /// The TLS listener.
    pub tls: SocketAddr,
    admin: SocketAddr,
    /// The authority of its certificate.
    pub ca_pem: Vec<u8>,
    ca: Issuer<'static, KeyPair>,
    starts: Starts,
}

impl Plan {
    /// A gateway that forwards to this hub, with the devices `d0` to `d9`.
    pub fn new(hub: Hub) -> Self {
        let devices = (0..10).map(|n| format!("d{n}")).collect();
        Self {
            hub,
            shards: 2,
            connections: 2,
            window: 1000,
            devices,
            limits: String::new(),
            hub_lines: String::new(),
            credentials: String::new(),
            ack: None,
            more_identities: String::new(),
            skew_seconds: 30,
            gateway_lines: String::new(),
            starts: Starts::default(),
        }
    }

    /// Shards, and as many connections to the hub.
    pub fn shards(mut self, shards: usize) -> Self {
        (self.shards, self.connections) = (shards, shards);
        self
    }

    /// Messages in flight on one connection to the hub.
    pub fn window(mut self, window: usize) -> Self {
        self.window = window;
        self
    }

    /// The devices `d0` to `d{count - 1}`.
    pub fn devices(mut self, count: usize) -> Self {
        self.devices = (0..count).map(|n| format!("d{n}")).collect();
        self
    }

    /// `ack` of the route.
    pub fn ack(mut self, witness: &'static str) -> Self {
        self.ack = Some(witness);
        self
    }

    /// A line under `[limits]`, or a section after it.
    pub fn limit(mut self, line: &str) -> Self {
        writeln!(self.limits, "{line}").unwrap();
        self
    }

    /// A line under `[gateway]`.
    pub fn gateway(mut self, line: &str) -> Self {
        writeln!(self.gateway_lines, "{line}").unwrap();
        self
    }

    /// A variable in the environment of its process.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.starts.environment.push((name.into(), value.into()));
        self
    }

    /// The test listens for its TCP and its TLS listener, and passes the sockets to it: now and at every later start.
    pub fn held(mut self) -> Self {
        let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, free_port())).unwrap();
        self.starts.held = vec![listen(), listen()];
        self
    }

    /// A line of the `[[upstream]]`.
    pub fn hub_line(mut self, line: &str) -> Self {
        writeln!(self.hub_lines, "{line}").unwrap();
        self
    }

    /// `client`.
    pub fn client(self, client: HubClient) -> Self {
        match client {
            HubClient::Native => self.hub_line("client = \"native\""),
            HubClient::Rumqttc => self.hub_line("client = \"rumqttc\""),
        }
    }

    /// A line under `[credentials]`.
    pub fn credentials(mut self, line: &str) -> Self {
        writeln!(self.credentials, "{line}").unwrap();
        self
    }

    /// What else `identities.toml` holds.
    pub fn identities_and(mut self, text: &str) -> Self {
        self.more_identities.push_str(text);
        self
    }

    /// `clock_skew`.
    pub fn skew_seconds(mut self, seconds: u64) -> Self {
        self.skew_seconds = seconds;
        self
    }

    /// Writes its files, starts it and waits until it is ready.
    pub fn start(self) -> Gateway {
        let mut gateway = self.launch(|_| {});
        gateway.until_ready();
        gateway
    }

    /// The same, with files that the test changes before.
    pub fn start_with(self, change: impl FnOnce(&Path)) -> Gateway {
        let mut gateway = self.launch(change);
        gateway.until_ready();
        gateway
    }

    /// Writes its files, lets the test change them, and starts it.
    pub fn launch(self, change: impl FnOnce(&Path)) -> Gateway {
        let folder = folder("gateway");
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut held = self.starts.held.iter().map(|socket| socket.local_addr().unwrap());
        let mut place = || held.next().unwrap_or_else(|| local(free_port()));
        let (tcp, tls, admin) = (place(), place(), local(free_port()));
        let (ca_pem, ca) = write_certificates(&folder);
        write_secret(&folder.join("identities.toml"), &self.all_identities());
        fs::write(folder.join("revocations.jsonl"), "").unwrap();
        fs::write(folder.join("gateway.toml"), self.configuration(&folder, tcp, tls, admin)).unwrap();
        change(&folder);
        // A rotation replaces some of what it holds.
        remember_files(&folder);
        // Not beside what the gateway watches: a line about a change would be a change.
        fs::create_dir(folder.join("log")).unwrap();
        let process = self.starts.start_in(&folder);
        Gateway { process, folder, tcp, tls, admin, ca_pem, ca, starts: self.starts }
    }

    fn configuration(&self, folder: &Path, tcp: SocketAddr, tls: SocketAddr, admin: SocketAddr) -> String {
        let (shards, connections, window) = (self.shards, self.connections, self.window);
        let (limits, skew, gateway_lines) = (&self.limits, self.skew_seconds, &self.gateway_lines);
        let ack = self.ack.map_or_else(String::new, |witness| format!("ack = \"{witness}\""));
        let upstream = match self.hub {
            Hub::Embedded => "kind = \"embedded\"".to_owned(),
            Hub::At(port, version) => mqtt_hub(&format!("mqtt://127.0.0.1:{port}"), version),
            Hub::Tls(port, version) => mqtt_hub(&format!("mqtts://localhost:{port}"), version),
            Hub::Web(port, version) => mqtt_hub(&format!("ws://127.0.0.1:{port}/mqtt"), version),
            Hub::WebTls(port, version) => mqtt_hub(&format!("wss://localhost:{port}/mqtt"), version),
            Hub::AtV6(port, version) => mqtt_hub(&format!("mqtt://[::1]:{port}"), version),
            Hub::WebV6(port, version) => mqtt_hub(&format!("ws://[::1]:{port}/mqtt"), version),
        };
        let (hub_lines, credentials) = (&self.hub_lines, &self.credentials);
        let folder = folder.display();
        format!(
            r#"[gateway]
name = "edge-test"
hostname = "localhost"
shards = {shards}
{gateway_lines}
state_dir = "{folder}/var"
identities = "{folder}/identities.toml"
revocations = "{folder}/revocations.jsonl"
[[listener]]
bind = "{tcp}"
transport = "tcp"
[[listener]]
bind = "{tls}"
transport = "tls"
certificate = "{folder}/server.pem"
private_key = "{folder}/server.key"
[credentials]
clock_skew = "{skew}s"
{credentials}
[limits]
{limits}
[[upstream]]
name = "hub"
connections = {connections}
window = {window}
{upstream}
{hub_lines}
[[route]]
from = "devices/{{device}}/#"
upstream = "hub"
{ack}
[admin]
bind = "{admin}"
"#
        )
    }

    fn all_identities(&self) -> String {
        let mut text = String::from(IDENTITIES);
        writeln!(text, "primary_key = \"{}\"\n", device_key("service")).unwrap();
        for device in &self.devices {
            let key = device_key(device);
            write!(text, "[[device]]\nid = \"{device}\"\nprimary_key = \"{key}\"\n").unwrap();
        }
        text + &self.more_identities
    }
}

impl Gateway {
    /// Waits until `/readyz` says so.
    #[track_caller]
    pub fn until_ready(&mut self) {
        until("the gateway to be ready", Duration::from_secs(90), || {
            if let Some(status) = self.process.ended() {
                panic!("the gateway ended with {status}: {}", self.process.log());
            }
            self.get("/readyz").is_some_and(|(status, _)| status == 200)
        });
    }

    /// Starts it again after a kill, with the same files and ports; it may not become ready.
    pub fn run_again(&mut self) {
        self.process = self.starts.start_in(&self.folder);
    }

    /// SIGTERM: it ends in order.
    pub fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// Sends its process a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let id = i32::try_from(self.process.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a process id");
        rustix::process::kill_process(id, signal).unwrap();
    }

    /// Waits until it has ended by itself; gives its exit code.
    #[track_caller]
    pub fn ended(&mut self, within: Duration) -> Option<i32> {
        until_some("the gateway to end", within, || self.process.ended()).code()
    }

    /// Which secrets that this test used stand in its log.
    pub fn secrets_in_log(&self) -> Vec<String> {
        found_in(&self.folder.join(LOG), &self.folder)
    }

    /// Starts it again with the same files, after it was killed, and waits until it is ready.
    #[track_caller]
    pub fn restart(&mut self) {
        self.process = self.starts.start_in(&self.folder);
        self.until_ready();
    }

    /// A plain connection on which nothing has been said.
    pub fn open(&self, version: Version) -> Device {
        Device::open(self.tcp, version)
    }

    /// A TLS connection on which nothing has been said.
    pub fn open_tls(&self, version: Version) -> Device {
        Device::open_tls(self.tls, &self.ca_pem, version)
    }

    /// A TLS client with a certificate of its own.
    pub fn tls_client(&self, identity: &ClientIdentity) -> Arc<ClientConfig> {
        Device::tls_client(&self.ca_pem, Some(identity))
    }

    /// A TLS connection of such a client, on which nothing has been said.
    pub fn open_tls_with(&self, version: Version, config: &Arc<ClientConfig>) -> Device {
        Device::open_tls_with(self.tls, config, version)
    }

    /// Another server certificate of the same CA, and its key, PEM.
    pub fn issue_server(&self) -> (String, String) {
        issue_server(&self.ca)
    }

    /// A device that is admitted with a SAS token, over TCP.
    #[track_caller]
    pub fn connect(&self, version: Version, device: &str) -> Device {
        self.open(version).admitted(&Login::new(version, device, &sas(device)))
    }

    /// The same over TLS.
    #[track_caller]
    pub fn connect_tls(&self, version: Version, device: &str) -> Device {
        self.open_tls(version).admitted(&Login::new(version, device, &sas(device)))
    }

    /// Whom a client of its TLS listeners believes, PEM.
    pub fn ca_pem(&self) -> &[u8] {
        &self.ca_pem
    }

    /// kill -9, and another start on the same files.
    #[track_caller]
    pub fn kill_and_restart(&mut self) {
        self.process.kill();
        self.process = self.starts.start_in(&self.folder);
        self.until_ready();
    }

    /// Appends a line to the revocation list, as an operator with an editor does.
    pub fn revoke(&self, line: &str) {
        let mut list = OpenOptions::new().append(true).open(self.folder.join("revocations.jsonl")).unwrap();
        list.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// The sum of a metric over the series that have all of these labels (`name="value"`).
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (status, text) = self.get("/metrics").expect("the admin port answers");
        assert_eq!(status, 200);
        let series = text.lines().filter(|line| {
            let rest = line.strip_prefix(name).unwrap_or_default();
            rest.starts_with([' ', '{']) && labels.iter().all(|label| rest.contains(label))
        });
        series.map(|line| line.rsplit(' ').next().expect("a value").parse::<f64>().unwrap()).sum()
    }

    /// GET of the admin port: status and body; `None`: it does not answer.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        self.ask("GET", path, "")
    }

    /// POST of JSON to the admin port: status and body; `None`: it does not answer.
    pub fn post(&self, path: &str, body: &str) -> Option<(u16, String)> {
        self.ask("POST", path, body)
    }

    /// DELETE at the admin port: status and body; `None`: it does not answer.
    pub fn delete(&self, path: &str) -> Option<(u16, String)> {
        self.ask("DELETE", path, "")
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect_timeout(&self.admin, Duration::from_secs(5)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        // Read each time: the gateway makes it at its first start.
        let token = fs::read_to_string(self.folder.join("var/admin.token")).unwrap_or_default();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.admin,
            token.trim(),
            body.len()
        );
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }
}

/// Whatever a test was about: nothing that is secret stands in the log.
impl Drop for Gateway {
    fn drop(&mut self) {
        self.process.kill();
        let found = self.secrets_in_log();
        if !found.is_empty() && !thread::panicking() {
            panic!("{} holds {} secrets: {:?}", self.folder.join(LOG).display(), found.len(), found.first());
        }
    }
}

impl Starts {
    fn start_in(&self, folder: &Path) -> Process {
        let program = env!("CARGO_BIN_EXE_tollgate");
        let mut command = Command::new(if self.held.is_empty() { program } else { "sh" });
        command.stdin(Stdio::null()).stdout(Stdio::null()).env("RUST_LOG", "trace");
        if let [first, second] = &self.held[..] {
            // sd_listen_fds(3): from descriptor 3 on, and the process id is known to the process alone.
            let passed = |socket: &TcpListener| Stdio::from(OwnedFd::from(socket.try_clone().unwrap()));
            let exec = "exec 3<&0 4<&1 </dev/null >/dev/null; LISTEN_PID=$$ exec \"$0\" \"$@\"";
            command.args(["-c", exec, program]).stdin(passed(first)).stdout(passed(second));
            command.env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", "mqtt:mqtts");
        }
        command.args(["run", "--config", "gateway.toml"]).current_dir(folder);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Process::start(&mut command, &folder.join(LOG))
    }
}

fn mqtt_hub(url: &str, version: Version) -> String {
    let version = if version == Version::V5 { 5 } else { 4 };
    format!("kind = \"mqtt\"\nurl = \"{url}\"\nversion = {version}")
}

/// A CA, and the server's certificate that it signed; gives the CA's.
fn write_certificates(folder: &Path) -> (Vec<u8>, Issuer<'static, KeyPair>) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let ca = Issuer::new(ca, ca_key);
    let (certificate, key) = issue_server(&ca);
    fs::write(folder.join("server.pem"), certificate).unwrap();
    write_secret(&folder.join("server.key"), &key);
    write_secret(&folder.join("issuer.secret"), ISSUER_SECRET);
    (ca_pem.into_bytes(), ca)
}

fn issue_server(ca: &Issuer<'static, KeyPair>) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, ca).unwrap();
    (certificate.pem(), key.serialize_pem())
}

fn write_secret(path: &Path, text: &str) {
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

const LOG: &str = "log/gateway.log";

const IDENTITIES: &str = r#"
[defaults.scope]
publish = ["devices/{device}/messages/events/#"]
subscribe = ["devices/{device}/messages/devicebound/#"]

[[issuer]]
name = "factory"
iss = "https://id.example"
audience = ["localhost"]
algorithms = ["HS256"]
require = ["exp", "iat", "jti"]
[[issuer.key]]
kid = "k1"
secret_file = "issuer.secret"
key_encoding = "utf8"

[[device]]
id = "service"
scope.publish = ["devices/+/messages/devicebound/#"]
scope.subscribe = ["devices/+/messages/events/#"]
"#;
