//! An HTTP proxy that connects its clients to where they ask (CONNECT), with or without a login.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// See the module.
pub struct ConnectProxy {
    shared: Arc<Shared>,
    port: u16,
}

#[derive(Default)]
struct Shared {
    /// What `Proxy-Authorization` must say.
    login: Option<String>,
    /// What everybody is answered; 0: as it should be.
    refuses: AtomicU16,
    asked: Mutex<Vec<String>>,
    ends: AtomicBool,
}

impl ConnectProxy {
    /// One that lets in whoever says this name and password; none: everybody.
    pub fn start(login: Option<(&str, &str)>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let login = login.map(|(name, password)| format!("Basic {}", STANDARD.encode(format!("{name}:{password}"))));
        let shared = Arc::new(Shared { login, ..Shared::default() });
        let of_thread = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                if of_thread.ends.load(SeqCst) {
                    return;
                }
                let shared = of_thread.clone();
                thread::spawn(move || _ = client.and_then(|client| serve(&shared, client)));
            }
        });
        Self { shared, port }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From here on it answers this status to everybody; 0: as it should.
    pub fn refuse(&self, status: u16) {
        self.shared.refuses.store(status, SeqCst);
    }

    /// Where it connected clients to, in order.
    pub fn connected(&self) -> Vec<String> {
        self.shared.asked.lock().unwrap().clone()
    }
}

impl Drop for ConnectProxy {
    fn drop(&mut self) {
        self.shared.ends.store(true, SeqCst);
        // Its thread waits in accept().
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
    }
}

fn serve(shared: &Shared, mut client: TcpStream) -> io::Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    let head = read_head(&mut client)?;
    let refused = shared.refuses.load(SeqCst);
    let said = head.lines().find_map(|line| line.strip_prefix("Proxy-Authorization: "));
    let status = if refused > 0 {
        Some(refused)
    } else if shared.login.as_deref().is_some_and(|login| said != Some(login)) {
        Some(407)
    } else {
        None
    };
    if let Some(status) = status {
        return write!(client, "HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n");
    }
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).unwrap_or_default().to_owned();
    let Ok(hub) = TcpStream::connect(&target) else {
        return write!(client, "HTTP/1.1 502 Bad Gateway\r\n\r\n");
    };
    shared.asked.lock().unwrap().push(target);
    write!(client, "HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")?;
    client.set_read_timeout(None)?;
    let (from_hub, to_client) = (hub.try_clone()?, client.try_clone()?);
    thread::spawn(move || pass_on(from_hub, to_client));
    pass_on(client, hub);
    Ok(())
}

/// Until one of the two is at its end; then both are.
fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    _ = io::copy(&mut from, &mut to);
    _ = from.shutdown(Shutdown::Both);
    _ = to.shutdown(Shutdown::Both);
}

fn read_head(client: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.extend(byte);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

const PATIENCE: Duration = Duration::from_secs(20);
