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

    /// How many connections it has had since it started.
    pub fn connects(&mut self) -> u64 {
        let running = self.running.as_mut().expect("a hub that runs");
        writeln!(running.commands, "connects").unwrap();
        let mut answer = String::new();
        running.answers.read_line(&mut answer).unwrap();
        answer.trim().parse().expect("a number")
    }

    /// `ack now`, `ack hold`, `ack after MS`, `close every N`, `close on TEXT`, `refuse CODE on TEXT`, `take N`.
    pub fn tell(&mut self, command: &str) {
        let running = self.running.as_mut().expect("a hub that runs");
        writeln!(running.commands, "{command}").unwrap();
        running.expect("done");
    }

    /// Everything that it wrote down, in order; a line that a kill cut short was never acknowledged.
    pub fn recorded(&self) -> Vec<Recorded> {
        self.read_lines(usize::MAX, |_| true)
    }

    /// Payloads of one topic as text, in order.
    pub fn payloads(&self, topic: &str) -> Vec<String> {
        self.payload_heads(topic, usize::MAX)
    }

    /// The first bytes of the payloads of one topic as text, in order.
    pub fn payload_heads(&self, topic: &str, bytes_max: usize) -> Vec<String> {
        let field = format!("\t{topic}\t");
        let of_topic = self.read_lines(bytes_max, |line| line.contains(&field));
        of_topic.into_iter().map(|message| String::from_utf8(message.payload).unwrap()).collect()
    }

    /// How many messages it wrote down.
    pub fn count(&self) -> usize {
        fs::read(self.log()).map_or(0, |log| log.iter().filter(|byte| **byte == b'\n').count())
    }

    /// Its log begins anew. When it is given nothing.
    pub fn forget(&self) {
        fs::File::options().write(true).open(self.log()).unwrap().set_len(0).unwrap();
    }

    /// Bytes that it wrote down.
    pub fn size(&self) -> u64 {
        fs::metadata(self.log()).map_or(0, |log| log.len())
    }

    fn read_lines(&self, payload_bytes_max: usize, wanted: impl Fn(&str) -> bool) -> Vec<Recorded> {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().filter(|line| wanted(line)).map(|line| parse(line, payload_bytes_max)).collect()
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

fn parse(line: &str, payload_bytes_max: usize) -> Recorded {
    let mut fields = line.split('\t');
    let mut next = || fields.next().expect("five fields").to_owned();
    Recorded {
        client_id: next(),
        qos: next().parse().unwrap(),
        topic: next(),
        payload: bytes(&next(), payload_bytes_max),
        properties: bytes(&next(), usize::MAX),
    }
}

fn bytes(hex: &str, bytes_max: usize) -> Vec<u8> {
    let value = |digit: u8| if digit < b'a' { digit - b'0' } else { digit - b'a' + 10 };
    let pairs = hex.as_bytes().chunks_exact(2).take(bytes_max);
    pairs.map(|pair| pair.iter().fold(0, |sum, digit| sum << 4 | value(*digit))).collect()
}

/// The built example. `cargo test` builds it before any test; a run of one test file does not.
fn program() -> PathBuf {
    static BUILT: Once = Once::new();
    let bin = Path::new(env!("CARGO_BIN_EXE_tollgate")).parent().expect("programs lie in a folder");
    let program = bin.join("examples/recorder");
    BUILT.call_once(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/recorder.rs");
        let written = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
        if written(&program) < written(&source) {
            build(bin.ends_with("release").then_some("--release"));
        }
    });
    program
}

fn build(profile: Option<&str>) {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--example", "recorder"]).args(profile);
    // What this test was told by cargo is not to be read by build scripts: they would all run again.
    let told =
        env::vars().map(|(name, _)| name).filter(|name| name.starts_with("CARGO_") && name != "CARGO_TARGET_DIR");
    told.for_each(|name| {
        build.env_remove(name);
    });
    assert!(build.status().unwrap().success(), "{build:?}");
}
