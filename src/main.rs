//! The program: logs to standard error, and what the arguments say.

use std::{
    backtrace::Backtrace,
    io::{self, IsTerminal},
    panic,
    process::ExitCode,
};

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tollgate::{
    app::{self, Named, Options},
    cli::{self, GatewayFile},
};
use tracing_appender::non_blocking::NonBlockingBuilder;
use tracing_subscriber::{EnvFilter, filter::Directive};

fn main() -> ExitCode {
    keep_secrets();
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

/// Threat T12: memory holds keys and tokens. It goes to no core file and to no debugger of the same user, and what a panic
/// says besides its place may quote a peer, and is not told.
fn keep_secrets() {
    if std::env::var_os(CORE_DUMPS).is_none_or(|value| value != "1") {
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        // Where the system does not let us, nothing is worse than without.
        let _ = setrlimit(Resource::Core, none);
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
    panic::set_hook(Box::new(|panicked| {
        let thread = std::thread::current();
        let (thread, place) = (thread.name().unwrap_or("unnamed"), panicked.location().map(ToString::to_string));
        let (place, backtrace) = (place.unwrap_or_default(), Backtrace::capture());
        tracing::error!(thread, place, %backtrace, "panicked: this is a mistake of the program");
    }));
}

/// `1`: core files and debuggers are let be, for whoever looks for a mistake of the program.
const CORE_DUMPS: &str = "TOLLGATE_CORE_DUMPS";
/// Unless `RUST_LOG` says otherwise. The embedded hub calls every connection that the pool ends an error: whether it
/// lives is its supervisor's to say. What rumqttc would warn of, `pub` and `sub` show.
const LOG: &str = "info,rumqttd=off,rumqttc=error,async_nats=off";

/// Whatever `RUST_LOG` says: the WebSocket library writes every frame into its log, and CONNECT is one.
const SILENT: &str = "tungstenite=off";
