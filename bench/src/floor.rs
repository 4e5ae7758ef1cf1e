//! The floor: the least that a server with one thread and one connection to the hub can do for a QoS 1 message. It finds
//! frames, rewrites packet ids, joins writes, and acknowledges after the hub; no authentication, no policy, no limits.

use std::{
    cell::RefCell,
    env, io,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    rc::Rc,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::Builder,
    sync::Notify,
    task::{LocalSet, spawn_local},
};

use crate::{gateway::until_listens, mqtt, process::Process};

/// The floor in a process of its own.
pub struct Floor {
    pub process: Process,
    pub address: SocketAddr,
}

impl Floor {
    pub fn start(hub: SocketAddr) -> io::Result<Self> {
        let address = crate::gateway::free_address()?;
        let mut command = Command::new(env::current_exe()?);
        command.args(["floor", &address.to_string(), &hub.to_string()]).stdin(Stdio::null());
        let process = Process::start(&mut command, Path::new("/dev/null"));
        until_listens(address)?;
        Ok(Self { process, address })
    }
}

/// `tollgate-bench floor BIND HUB`.
pub fn run(bind: &str, hub: &str) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    LocalSet::new().block_on(&runtime, relay(bind, hub))
}

/// What goes up: unsent bytes, and whose each packet id is.
struct Uplink {
    unsent: RefCell<Vec<u8>>,
    wake: Notify,
    owners: RefCell<Vec<Option<Owner>>>,
    free: RefCell<Vec<u16>>,
    room: Notify,
}

/// A device, and the packet id that it gave.
type Owner = (Rc<Downlink>, u16);

/// What goes back to one device.
#[derive(Default)]
struct Downlink {
    acknowledgements: RefCell<Vec<u8>>,
    wake: Notify,
}

async fn relay(bind: &str, hub: &str) -> io::Result<()> {
    let mut link = TcpStream::connect(hub).await?;
    link.set_nodelay(true)?;
    link.write_all(&mqtt::connect("floor", None)).await?;
    link.read_exact(&mut [0; 4]).await?;
    let (from_hub, to_hub) = link.into_split();
    let uplink = Rc::new(Uplink {
        unsent: RefCell::default(),
        wake: Notify::new(),
        owners: RefCell::new(vec![None; 65_536]),
        free: RefCell::new((1..=u16::MAX).rev().collect()),
        room: Notify::new(),
    });
    spawn_local(send_up(uplink.clone(), to_hub));
    spawn_local(take_back(uplink.clone(), from_hub));
    let listener = TcpListener::bind(bind).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        spawn_local(serve(stream, uplink.clone()));
    }
}

async fn send_up(uplink: Rc<Uplink>, mut to_hub: OwnedWriteHalf) -> io::Result<()> {
    let mut sending = Vec::new();
    loop {
        uplink.wake.notified().await;
        loop {
            std::mem::swap(&mut sending, &mut *uplink.unsent.borrow_mut());
            if sending.is_empty() {
                break;
            }
            to_hub.write_all(&sending).await?;
            sending.clear();
            uplink.room.notify_waiters();
        }
    }
}

async fn take_back(uplink: Rc<Uplink>, mut from_hub: OwnedReadHalf) -> io::Result<()> {
    let (mut read, mut touched) = (Vec::with_capacity(64 * 1024), Vec::new());
    while from_hub.read_buf(&mut read).await? > 0 {
        let mut used = 0;
        while let Some((first, head, total)) = mqtt::frame(read.get(used..).unwrap_or_default()) {
            let id = mqtt::number(&read, used + head);
            let owner = uplink.owners.borrow_mut().get_mut(usize::from(id)).and_then(Option::take);
            if let (4, Some((device, theirs))) = (first >> 4, owner) {
                uplink.free.borrow_mut().push(id);
                let mut waiting = device.acknowledgements.borrow_mut();
                if waiting.is_empty() {
                    touched.push(device.clone());
                }
                waiting.extend(mqtt::puback(theirs));
            }
            used += total;
        }
        read.drain(..used);
        touched.drain(..).for_each(|device: Rc<Downlink>| device.wake.notify_one());
        uplink.room.notify_waiters();
    }
    Ok(())
}

async fn serve(mut stream: TcpStream, uplink: Rc<Uplink>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let downlink = Rc::new(Downlink::default());
    let (mut read, mut sending) = (Vec::with_capacity(16 * 1024), Vec::new());
    loop {
        tokio::select! {
            biased;
            () = downlink.wake.notified() => {
                std::mem::swap(&mut sending, &mut *downlink.acknowledgements.borrow_mut());
                stream.write_all(&sending).await?;
                sending.clear();
            }
            count = stream.read_buf(&mut read) => {
                if count? == 0 {
                    return Ok(());
                }
                let mut used = 0;
                while let Some((first, head, total)) = mqtt::frame(read.get(used..).unwrap_or_default()) {
                    let frame = read.get(used..used + total).unwrap_or_default();
                    match first >> 4 {
                        1 => stream.write_all(&[0x20, 2, 0, 0]).await?,
                        3 => take_publish(frame, head, &downlink, &uplink).await,
                        _ => {}
                    }
                    used += total;
                }
                read.drain(..used);
            }
        }
    }
}

async fn take_publish(frame: &[u8], head: usize, downlink: &Rc<Downlink>, uplink: &Uplink) {
    while uplink.unsent.borrow().len() > UNSENT_BYTES_MAX || uplink.free.borrow().is_empty() {
        uplink.room.notified().await;
    }
    let at = mqtt::packet_id_at(frame, head);
    let Some(id) = uplink.free.borrow_mut().pop() else { return };
    let mut unsent = uplink.unsent.borrow_mut();
    if unsent.is_empty() {
        uplink.wake.notify_one();
    }
    let start = unsent.len();
    unsent.extend_from_slice(frame);
    if let Some(place) = unsent.get_mut(start + at..start + at + 2) {
        place.copy_from_slice(&id.to_be_bytes());
    }
    if let Some(owner) = uplink.owners.borrow_mut().get_mut(usize::from(id)) {
        *owner = Some((downlink.clone(), mqtt::number(frame, at)));
    }
}

const UNSENT_BYTES_MAX: usize = 256 * 1024;
