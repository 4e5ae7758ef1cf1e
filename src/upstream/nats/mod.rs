//! NATS JetStream as a hub: an interpreter between the link and `async-nats`.
//!
//! The library reconnects by itself and sends on whatever it was given meanwhile, behind messages that are lost with the
//! old connection: order per device would be gone. So a connection of it is used once. When it is lost, the link is told so,
//! as by a broken socket, and sends what is unacknowledged again, in order, on the next.

mod commands;
mod header;
mod interpreter;
mod login;
mod outbox;
mod stream;
mod subject;

pub use header::header_lines;
pub use login::check_credentials;
pub use subject::{subject_of, subjects_of, topic_of};

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use async_nats::{
    AuthError, Client, ConnectErrorKind, ConnectOptions, Event, Request, RequestErrorKind, ServerAddr,
    rustls::ClientConfig,
};
use tokio::sync::mpsc;

use self::{
    interpreter::Opened,
    stream::{Answer, NO_JETSTREAM, Stream},
};
use super::{
    HubStream, Interpreted, NatsHubConfig,
    interpreted::with_sources,
    trust::{Trust, TrustError},
};

/// A NATS hub: its servers, who the pool is there, and the stream that is its witness.
#[derive(Clone)]
pub struct NatsHub {
    place: Arc<Place>,
}

struct Place {
    config: NatsHubConfig,
    servers: Vec<ServerAddr>,
    trust: Option<Trust>,
    /// How the server's own listings call the connections.
    client_name: String,
    /// As metrics and logs call it.
    upstream: String,
}

impl NatsHub {
    /// The hub that `config` describes. Nothing is connected.
    ///
    /// # Errors
    /// [`TrustError`]: no CA to believe, or no host name.
    pub fn new(config: &NatsHubConfig, upstream: &str, client_name: String) -> Result<Self, TrustError> {
        let servers = config.address();
        let server = |url: &str| url.parse().map_err(|_| TrustError::HostName { host: url.to_owned() });
        // Each server's name is checked by the library: the first stands for all, to read the files.
        let host = config.servers.first().map_or("", |(host, _)| host);
        let place = Place {
            servers: servers.split(',').map(server).collect::<Result<_, _>>()?,
            trust: config.tls.as_ref().map(|tls| Trust::new(host, tls)).transpose()?,
            config: config.clone(),
            client_name,
            upstream: upstream.to_owned(),
        };
        Ok(Self { place: Arc::new(place) })
    }

    /// Connects, and looks whether the stream takes messages.
    ///
    /// # Errors
    /// What the network or the server says; that the stream is missing, full or no witness.
    pub async fn dial(&self) -> io::Result<HubStream> {
        let opened = self.open().await.map_err(io::Error::other)?;
        Ok(HubStream::Interpreted(Box::new(Interpreted::new(|far, tally| interpreter::interpret(opened, far, tally)))))
    }

    async fn open(&self) -> Result<Opened, String> {
        let (events_in, mut events) = mpsc::channel(EVENTS_MAX);
        let client = self.place.connect(events_in).await?;
        let looked_at = self.place.look_at_stream(&client).await;
        let stream = looked_at.map_err(|what| match denied(&mut events) {
            Some(denied) => format!("the stream {} {what}: {denied}", self.place.config.stream),
            None => format!("the stream {} {what}", self.place.config.stream),
        })?;
        if stream.is_memory {
            let (upstream, stream) = (&self.place.upstream, &self.place.config.stream);
            tracing::warn!(
                upstream,
                stream,
                "the stream is kept in memory: its acknowledgement is as durable as its server"
            );
        }
        let inbox = client.new_inbox();
        let acks = client.subscribe(format!("{inbox}.*")).await.map_err(|error| error.to_string())?;
        Ok(Opened { hub: self.clone(), client, stream, inbox, acks, events })
    }

    /// Asks for the stream once more.
    async fn look_again(&self, client: &Client) -> Result<Stream, String> {
        let what = self.place.look_at_stream(client).await;
        what.map_err(|what| format!("the stream {} {what}", self.place.config.stream))
    }

    fn stream_name(&self) -> &str {
        &self.place.config.stream
    }
}

impl fmt::Debug for NatsHub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsHub").field("config", &self.place.config).finish_non_exhaustive()
    }
}

impl Place {
    async fn connect(&self, events: mpsc::Sender<Event>) -> Result<Client, String> {
        let used = Arc::new(AtomicBool::new(false));
        let mut options = self.options(Arc::clone(&used), events);
        if let Some(trust) = &self.trust {
            options = options.tls_client_config(ClientConfig::clone(&trust.client()));
        }
        let client = options.connect(self.servers.as_slice()).await.map_err(|error| match error.kind() {
            ConnectErrorKind::AuthorizationViolation => "the server does not accept this login".to_owned(),
            ConnectErrorKind::TimedOut => "the server did not answer".to_owned(),
            _ => with_sources(&error),
        })?;
        used.store(true, Relaxed);
        Ok(client)
    }

    fn options(&self, used: Arc<AtomicBool>, events: mpsc::Sender<Event>) -> ConnectOptions {
        let login = self.config.login.clone();
        ConnectOptions::with_auth_callback(move |nonce| {
            // See the module: a second connection of the same client gets no further than this, and the client ends.
            let auth = match used.load(Relaxed) {
                true => Err(AuthError::new("the connection was used")),
                false => login::auth(&login, &nonce),
            };
            async { auth }
        })
        .name(&self.client_name)
        .max_reconnects(self.servers.len())
        .reconnect_delay_callback(|_| Duration::ZERO)
        .ignore_discovered_servers()
        .connection_timeout(CONNECT_TIMEOUT)
        .ping_interval(PING_EVERY)
        .request_timeout(Some(ANSWER_WITHIN))
        .event_callback(move |event| {
            // One that finds no place is lost: what it would say of is noticed by its silence.
            _ = events.try_send(event);
            async {}
        })
    }

    async fn look_at_stream(&self, client: &Client) -> Result<Stream, String> {
        let question = format!("$JS.API.STREAM.INFO.{}", self.config.stream);
        let answer = client.send_request(question, Request::new()).await.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => NO_JETSTREAM.to_owned(),
            RequestErrorKind::TimedOut => format!("was not described within {} s", ANSWER_WITHIN.as_secs()),
            _ => format!("cannot be looked at: {}", with_sources(&error)),
        })?;
        let answer: Answer =
            serde_json::from_slice(&answer.payload).map_err(|_| "was described as nothing known".to_owned())?;
        Stream::of(answer)
    }
}

/// The server's complaint that is there by now.
fn denied(events: &mut mpsc::Receiver<Event>) -> Option<String> {
    std::iter::from_fn(|| events.try_recv().ok()).find_map(|event| match event {
        Event::ServerError(error) => Some(error.to_string()),
        _ => None,
    })
}

/// A hub at the other end of the world answers within a second; a lost SYN is repeated after 1, 3 and 7.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A server that answers two of them with nothing is gone.
const PING_EVERY: Duration = Duration::from_secs(15);

/// A question to JetStream.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Events that wait to be looked at. They come singly.
const EVENTS_MAX: usize = 64;
