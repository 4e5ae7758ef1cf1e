//! The recording hub (`examples/recorder.rs`) as a test holds it.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{ChildStdin, ChildStdout, Command, Stdio},
    sync::Once,
};

use super::{Process, folder, free_port};

/// A hub in a process of its own; what it acknowledged is in its log, also after [`Recorder::kill`].
pub struct Recorder {
    running: Option<Running>,
    folder: PathBuf,
    port: u16,
}

/// One line of its log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recorded {
    /// The link that brought it.
    pub client_id: String,
    /// Of the PUBLISH.
    pub qos: u8,
    /// In the hub's terms.
    pub topic: String,
    /// Byte for byte.
    pub payload: Vec<u8>,
    /// MQTT 5.0 properties as they were sent.
    pub properties: Vec<u8>,
}

struct Running {
    process: Process,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Recorder {
    /// On a port of its own, acknowledging at once.
    pub fn start() -> Self {
        let mut recorder = Self { running: None, folder: folder("recorder"), port: free_port() };
        recorder.restart();
        recorder
    }

    /// The address that it listens on, now and after a restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.process.kill();
        }
    }

    /// Starts again on the same port, with the same log.
    pub fn restart(&mut self) {
        self.kill();
        let mut command = Command::new(program());
        command.arg(format!("127.0.0.1:{}", self.port)).arg(self.log());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(&mut command, &self.folder.join("recorder.err"));
        let (commands, answers) = process.pipes();
        let mut running = Running { process, commands, answers: BufReader::new(answers) };
        running.expect("ready");
        self.running = Some(running);
    }

    /// `ack now`, `ack hold`, `ack after MS`, `close every N`.
    pub fn tell(&mut self, command: &str) {
        let running = self.running.as_mut().expect("a hub that runs");
        writeln!(running.commands, "{command}").unwrap();
        running.expect("done");
    }

    /// Everything that it wrote down, in order; a line that a kill cut short was never acknowledged.
    pub fn recorded(&self) -> Vec<Recorded> {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(parse).collect()
    }

    /// Payloads of one topic as text, in order.
    pub fn payloads(&self, topic: &str) -> Vec<String> {
        let of_topic = self.recorded().into_iter().filter(|message| message.topic == topic);
        of_topic.map(|message| String::from_utf8(message.payload).unwrap()).collect()
    }

    fn log(&self) -> PathBuf {
        self.folder.join("recorded")
    }
}

impl Running {
    fn expect(&mut self, answer: &str) {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), answer, "{}", self.process.log());
    }
}

fn parse(line: &str) -> Recorded {
    let mut fields = line.split('\t');
    let mut next = || fields.next().expect("five fields").to_owned();
    Recorded {
        client_id: next(),
        qos: next().parse().unwrap(),
        topic: next(),
        payload: bytes(&next()),
        properties: bytes(&next()),
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().map(|c| c.to_digit(16).expect("a hex digit").try_into().unwrap()).collect();
    digits.chunks(2).map(|pair| pair.iter().fold(0, |sum, digit| sum << 4 | digit)).collect()
}

/// The built example; a run that was filtered to one test has not built it yet.
fn program() -> PathBuf {
    static BUILT: Once = Once::new();
    let bin = Path::new(env!("CARGO_BIN_EXE_tollgate")).parent().expect("programs lie in a folder");
    BUILT.call_once(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--example", "recorder"]);
        if bin.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "{build:?}");
    });
    bin.join("examples/recorder")
}
