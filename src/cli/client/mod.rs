//! `tollgate pub` and `tollgate sub`: a client for commissioning. It connects as the device would and shows every answer
//! of the gateway with its meaning. It never reconnects: what went wrong shall be seen.

mod link;
mod words;

use std::{
    io::{self, Read},
    time::Duration,
};

use tokio::{signal, time::timeout};

use super::{
    ConfigFile, Outcome,
    arguments::{PublishArguments, SubscribeArguments},
    local::{harmless, note, print},
};
use crate::id::DeviceId;
use link::{Answer, Link, Message};
use words::{connack_v4, reason};

/// `tollgate pub`.
pub(super) fn publish(at: &ConfigFile, asked: &PublishArguments) -> Result<(), Outcome> {
    let payload = payload(asked)?;
    let topic =
        asked.topic.clone().unwrap_or_else(|| format!("{}/messages/events/", own_topics(&asked.connect.device)));
    let message = Message { topic, payload, qos: asked.qos, retain: asked.retain };
    run(async {
        let mut client = Client::connect(at, &asked.connect, Console::Answers).await?;
        client.publish_all(&message, asked.count).await
    })
}

/// `tollgate sub`.
pub(super) fn subscribe(at: &ConfigFile, asked: &SubscribeArguments) -> Result<(), Outcome> {
    let own = own_topics(&asked.connect.device);
    let filter = asked.topic.clone().unwrap_or_else(|| format!("{own}/messages/devicebound/#"));
    run(async {
        let mut client = Client::connect(at, &asked.connect, Console::Messages).await?;
        client.subscribe(&filter, asked.qos).await?;
        tokio::select! {
            received = client.receive(asked.count) => received?,
            _ = signal::ctrl_c() => {}
        }
        client.leave().await;
        Ok(())
    })
}

/// What standard output is for; all else goes to standard error.
#[derive(Clone, Copy)]
enum Console {
    /// What the gateway answers.
    Answers,
    /// What arrives: answers go to standard error.
    Messages,
}

impl Console {
    fn say(self, line: &str) {
        match self {
            Self::Answers => print(&format!("{line}\n")),
            Self::Messages => eprintln!("{}", harmless(line)),
        }
    }
}

/// Where the default scope has what is a device's, or a module's, own.
fn own_topics(id: &DeviceId) -> String {
    let module = id.module().map_or_else(String::new, |module| format!("/modules/{module}"));
    format!("devices/{}{module}", id.device())
}

/// A device that is connected.
struct Client {
    link: Link,
    device: DeviceId,
    console: Console,
}

impl Client {
    async fn connect(
        at: &ConfigFile,
        asked: &super::arguments::ConnectArguments,
        console: Console,
    ) -> Result<Self, Outcome> {
        let target = link::Target::new(at, asked)?;
        console.say(&format!("CONNECT {} to {target}", asked.device));
        let mut client = Self { link: Link::open(&target), device: asked.device.clone(), console };
        match client.answer().await? {
            Answer::ConnAck { code: 0, .. } => Ok(client),
            _ => Err(client.refused()),
        }
    }

    /// Publishes, with some in flight, and waits for what answers them.
    async fn publish_all(&mut self, message: &Message, count: u64) -> Result<(), Outcome> {
        let (mut queued, mut settled, mut refused) = (0, 0, 0);
        while settled < count {
            while queued < count && queued - settled < IN_FLIGHT {
                self.link.publish(message)?;
                queued += 1;
            }
            match self.counted(count).await? {
                Answer::Sent { .. } if message.qos == 0 => settled += 1,
                Answer::Sent { id } if count <= SHOWN => {
                    let bytes = message.payload.len();
                    self.console.say(&format!("PUBLISH {id} {} ({bytes} bytes, QoS 1)", message.topic));
                }
                Answer::PubAck { code, .. } => {
                    settled += 1;
                    refused += u64::from(code >= 0x80);
                }
                Answer::Closed(_) | Answer::Disconnect { .. } => return Err(self.refused()),
                _ => {}
            }
        }
        if message.qos == 0 {
            self.settle().await?;
            self.console.say(&format!("{count} sent at QoS 0, which has no answer; the gateway read all of it"));
        } else if count > 1 {
            self.console.say(&format!("{} of {count} acknowledged", count - refused));
        }
        self.leave().await;
        if refused == 0 { Ok(()) } else { Err(self.refused()) }
    }

    /// QoS 0 has no answer, but an UNSUBSCRIBE behind it has: when that comes, all before it was read and not refused.
    async fn settle(&mut self) -> Result<(), Outcome> {
        self.link.unsubscribe("tollgate/settled")?;
        loop {
            match self.answer().await? {
                Answer::UnsubAck => return Ok(()),
                Answer::Closed(_) | Answer::Disconnect { .. } => return Err(self.refused()),
                _ => {}
            }
        }
    }

    async fn subscribe(&mut self, filter: &str, qos: u8) -> Result<(), Outcome> {
        self.console.say(&format!("SUBSCRIBE {filter} (QoS {qos})"));
        self.link.subscribe(filter, qos)?;
        loop {
            match self.answer().await? {
                Answer::SubAck { codes, .. } if codes.iter().all(|code| *code < 0x80) => return Ok(()),
                Answer::SubAck { .. } => {
                    self.leave().await;
                    return Err(self.refused());
                }
                Answer::Closed(_) | Answer::Disconnect { .. } => return Err(self.refused()),
                _ => {}
            }
        }
    }

    /// Shows messages until there were `count`, or for ever.
    async fn receive(&mut self, count: Option<u64>) -> Result<(), Outcome> {
        let mut received = 0;
        while count.is_none_or(|count| received < count) {
            let answer = self.link.next().await;
            self.show(&answer);
            match answer {
                Answer::Message { .. } => received += 1,
                Answer::Closed(_) | Answer::Disconnect { .. } => {
                    // After DISCONNECT the connection closes; there is nothing more to be shown.
                    return Err(self.refused());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The next answer, shown.
    async fn answer(&mut self) -> Result<Answer, Outcome> {
        let answer = self.unseen().await?;
        self.show(&answer);
        Ok(answer)
    }

    /// The next answer of many: shown when there are few, or when it is a refusal.
    async fn counted(&mut self, count: u64) -> Result<Answer, Outcome> {
        let answer = self.unseen().await?;
        if count <= SHOWN || !matches!(answer, Answer::PubAck { code: 0..0x80, .. }) {
            self.show(&answer);
        }
        Ok(answer)
    }

    async fn unseen(&mut self) -> Result<Answer, Outcome> {
        timeout(ANSWER_TIMEOUT, self.link.next()).await.map_err(|_| {
            let seconds = ANSWER_TIMEOUT.as_secs();
            Outcome::Failed(format!("no answer within {seconds} s; is the hub away? `tollgate upstreams`"))
        })
    }

    fn show(&self, answer: &Answer) {
        let line = match answer {
            Answer::ConnAck { code, v5, session_present } => {
                let meaning = if *v5 { reason(*code) } else { connack_v4(*code) };
                let kept = if *session_present { ", the session was kept" } else { "" };
                format!("CONNACK {} {meaning}{kept}", code_text(*code, *v5))
            }
            Answer::PubAck { id, code, v5, why } => {
                let meaning =
                    if *v5 { format!(" {} {}", code_text(*code, true), reason(*code)) } else { String::new() };
                format!("PUBACK {id}{meaning}{}", because(why.as_deref()))
            }
            Answer::SubAck { codes, v5 } => {
                let each = codes.iter().map(|code| match code {
                    0..=2 => format!("granted QoS {code}"),
                    code if !v5 => format!("{} refused", code_text(*code, true)),
                    code => format!("{} {}", code_text(*code, true), reason(*code)),
                });
                format!("SUBACK {}", each.collect::<Vec<_>>().join(", "))
            }
            Answer::Disconnect { code, why } => {
                format!("DISCONNECT {} {}{}", code_text(*code, true), reason(*code), because(why.as_deref()))
            }
            Answer::Closed(why) => format!("connection closed: {why}"),
            Answer::Message { topic, payload } => return show_message(topic, payload),
            Answer::Sent { .. } | Answer::UnsubAck => return,
        };
        self.console.say(&line);
    }

    /// Says DISCONNECT, and does not wait long for the end.
    async fn leave(&mut self) {
        self.link.disconnect();
        let ended = async { while !matches!(self.link.next().await, Answer::Closed(_)) {} };
        // A gateway that does not close leaves that to the end of this process.
        let _ = timeout(LEAVE_TIMEOUT, ended).await;
    }

    /// The device is told little; its operator is told where to ask.
    fn refused(&self) -> Outcome {
        note(&format!("why: tollgate refusals --device {} (on the gateway)", self.device));
        Outcome::Refused
    }
}

fn run(work: impl Future<Output = Result<(), Outcome>>) -> Result<(), Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Outcome::failed)?;
    runtime.block_on(work)
}

fn payload(asked: &PublishArguments) -> Result<Vec<u8>, Outcome> {
    if asked.message != "-" {
        return Ok(asked.message.clone().into_bytes());
    }
    if asked.connect.token.as_deref() == Some("-") {
        return Err(Outcome::Usage("token and message cannot both come from standard input".into()));
    }
    let mut payload = Vec::new();
    let read = io::stdin().take(PAYLOAD_BYTES_MAX + 1).read_to_end(&mut payload);
    read.map_err(|error| Outcome::Failed(format!("cannot read the message from standard input: {error}")))?;
    if payload.len() as u64 > PAYLOAD_BYTES_MAX {
        return Err(Outcome::Failed("the message on standard input is longer than 256 KiB".into()));
    }
    Ok(payload)
}

/// A line a message. What would move the cursor is escaped: it comes from a device.
fn show_message(topic: &str, payload: &[u8]) {
    let text: String = String::from_utf8_lossy(payload).chars().map(shown).collect();
    let topic: String = topic.chars().map(shown).collect();
    print(&format!("{topic}  {text}\n"));
}

fn shown(c: char) -> String {
    if c.is_control() && c != '\t' { c.escape_unicode().to_string() } else { c.to_string() }
}

fn code_text(code: u8, v5: bool) -> String {
    if v5 { format!("0x{code:02X}") } else { code.to_string() }
}

fn because(why: Option<&str>) -> String {
    why.map_or_else(String::new, |why| format!(": {}", why.chars().map(shown).collect::<String>()))
}

/// Under the smallest Receive Maximum that a profile has (azure: 16).
const IN_FLIGHT: u64 = 16;
/// More messages are counted, not listed one by one.
const SHOWN: u64 = 20;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// As the gateway takes it by default.
const PAYLOAD_BYTES_MAX: u64 = 256 << 10;
