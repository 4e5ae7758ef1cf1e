//! The program: logs to standard error, and what the arguments say.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use tollgate::{
    app::{self, Named, Options},
    cli::{self, GatewayFile},
};
use tracing_appender::non_blocking::NonBlockingBuilder;
use tracing_subscriber::{EnvFilter, filter::Directive};

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG));
    let silent: Directive = SILENT.parse().expect("invariant: a target and a level");
    let filter = filter.add_directive(silent);
    let is_terminal = io::stderr().is_terminal();
    // Not lossy: when the reader of the log is slow, the gateway is held up before a line is dropped. What is still on
    // its way is written when the guard is dropped.
    let (writer, _until_written) = NonBlockingBuilder::default().lossy(false).finish(io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(is_terminal).init();
    cli::main(|file| {
        let named = match file {
            GatewayFile::Named(_) => Named::Yes,
            GatewayFile::Default(_) => Named::No,
        };
        app::run(&Options { config: file.path().into(), named })
    })
}

/// Unless `RUST_LOG` says otherwise. The embedded hub calls every connection that the pool ends an error: whether it
/// lives is its supervisor's to say. What rumqttc would warn of, `pub` and `sub` show.
const LOG: &str = "info,rumqttd=off,rumqttc=error,async_nats=off";

/// Whatever `RUST_LOG` says: the WebSocket library writes every frame into its log, and CONNECT is one.
const SILENT: &str = "tungstenite=off";
