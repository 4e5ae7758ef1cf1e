"""SAS tokens, good and hostile: every line of the rules, allowed and denied."""

import base64
import itertools

import forge
from forge import quote
from table_place import DAY, ISSUED_BEFORE, LONG_ID, ODD_ID, SKEW, Case

MALFORMED, INVALID = "credential_malformed", "signature_invalid"
SOON = 3600
WORD = "SharedAccessSignature "


def cases():
    for family in (as_sent, field_order, fields, words, expiries, signatures, resources, policies, groups, devices, edges):
        yield from family()


def sr_of(device):
    return f"localhost/devices/{device}"


def own(device="pump-1", **other):
    """A good token of the device's own key, with changes."""
    def make(now):
        key = forge.secret(other.get("key", device))
        return forge.sas(key, other.get("resource", sr_of(device)), other.get("se", now + SOON), other.get("skn"))
    return make


def raw(sr, **other):
    """`sr` exactly as it is given, signed as it stands."""
    return lambda now: forge.sas_text(forge.sas_fields(forge.secret("pump-1"), sr, now + SOON, **other))


def edited(change):
    """The list of fields of a good token, changed."""
    return lambda now: forge.sas_text(change(forge.sas_fields(forge.secret("pump-1"), quote(sr_of("pump-1")), now + SOON)))


def text(change):
    return lambda now: change(own()(now))


def as_sent():
    for name, sr in {
        "upper": "localhost%2Fdevices%2Fpump-1", "lower": "localhost%2fdevices%2fpump-1", "none": "localhost/devices/pump-1",
        "mixed": "localhost%2Fdevices%2fpump-1", "half": "localhost/devices%2Fpump-1", "letters": "%6Cocalhost%2Fdevices%2Fpump-1",
        "hyphen": "localhost%2Fdevices%2Fpump%2D1", "host upper case": "LOCALHOST%2Fdevices%2Fpump-1",
        "host mixed case": "LocalHost/devices/pump-1", "alias": "hub.example%2Fdevices%2Fpump-1",
        "alias upper case": "HUB.EXAMPLE%2Fdevices%2Fpump-1",
    }.items():
        yield Case(f"sr escaped: {name}", None, raw(sr))
    good, lower = quote(sr_of("pump-1")), quote(sr_of("pump-1")).lower()
    for name, sent, signed in [
        ("decoded", good, sr_of("pump-1")), ("lower, sent upper", good, lower), ("upper, sent lower", lower, good),
        ("encoded, sent decoded", sr_of("pump-1"), good), ("twice encoded", good, quote(good)),
        ("with the host in lower case", "LOCALHOST%2Fdevices%2Fpump-1", good),
    ]:
        yield Case(f"sr signed {name}", INVALID, raw(sent, signed_sr=signed))
    yield Case("sr encoded twice", MALFORMED, raw(quote(good)))
    for at in ("%", "%2", "%zz", "%2G", "% 2"):
        yield Case(f"sr with the bad escape {at!r}", MALFORMED, raw("localhost%2Fdevices%2Fpump-1" + at))
    for name, escaped in [("NUL", "%00"), ("newline", "%0A"), ("DEL", "%7F"), ("half a character", "%C3"), ("over-long", "%C0%AF"),
                          ("a surrogate", "%ED%A0%80"), ("a query", "%3Fa=b"), ("a fragment", "%23a"), ("a backslash", "%5C")]:
        yield Case(f"sr with {name}", MALFORMED, raw("localhost%2Fdevices%2Fpump-1" + escaped))


def field_order():
    for order in itertools.permutations(range(3)):
        said = " ".join(("sr", "sig", "se")[n] for n in order)
        yield Case(f"order {said}", None, edited(lambda f, order=order: [f[n] for n in order]))
    for order in [(3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1), (3, 0, 1, 2), (0, 3, 2, 1), (1, 2, 3, 0)]:
        def make(now, order=order):
            fields = forge.sas_fields(forge.secret("policy device"), quote(sr_of("pump-1")), now + SOON, "device")
            return forge.sas_text([fields[n] for n in order])
        said = " ".join(("sr", "sig", "se", "skn")[n] for n in order)
        yield Case(f"order {said}", None, make)


def fields():
    names = ("sr", "sig", "se")
    for n, name in enumerate(names):
        yield Case(f"no {name}", MALFORMED, edited(lambda f, n=n: f[:n] + f[n + 1:]))
        yield Case(f"empty {name}", MALFORMED, edited(lambda f, n=n: f[:n] + [(f[n][0], "")] + f[n + 1:]))
        yield Case(f"{name} twice, alike", MALFORMED, edited(lambda f, n=n: f + [f[n]]))
        yield Case(f"{name} twice, the second empty", MALFORMED, edited(lambda f, n=n: f + [(f[n][0], "")]))
        yield Case(f"{name} in upper case", MALFORMED, edited(lambda f, n=n: f[:n] + [(f[n][0].upper(), f[n][1])] + f[n + 1:]))
        yield Case(f"{name} escaped", MALFORMED, edited(lambda f, n=n: f[:n] + [(quote_all(f[n][0]), f[n][1])] + f[n + 1:]))
    yield Case("se twice, the second later", MALFORMED, lambda now: own()(now) + f"&se={now + 7200}")
    yield Case("sr twice, the second of another device", MALFORMED, text(lambda t: t + "&sr=localhost%2Fdevices%2Fpump-10"))
    yield Case("skn twice", MALFORMED, text(lambda t: t + "&skn=device&skn=device"))
    yield Case("empty skn", None, text(lambda t: t + "&skn="))
    yield Case("empty skn in front", None, text(lambda t: t.replace(WORD, WORD + "skn=&")))
    yield Case("empty skn twice", MALFORMED, text(lambda t: t + "&skn=&skn="))
    for name, more in [("an unknown field", "&x=y"), ("a known word of others", "&sv=2020"), ("a field without =", "&skn"),
                       ("a field without a name", "&=x"), ("& at the end", "&"), ("a field with a space", "& skn=device")]:
        yield Case(f"fields: {name}", MALFORMED, text(lambda t, more=more: t + more))
    yield Case("fields: & in front", MALFORMED, text(lambda t: t.replace(WORD, WORD + "&")))
    yield Case("fields: && within", MALFORMED, text(lambda t: t.replace("&", "&&", 1)))
    yield Case("fields: joined by ;", MALFORMED, text(lambda t: t.replace("&", ";")))
    yield Case("fields: none", MALFORMED, lambda now: WORD)
    yield Case("fields: &amp;", MALFORMED, text(lambda t: t.replace("&", "&amp;")))


def quote_all(plain):
    return "".join(f"%{ord(c):02X}" for c in plain)


def words():
    for name, change in {
        "Bearer before it": lambda t: "Bearer " + t, "bearer before it": lambda t: "bearer " + t,
        "a space before it": lambda t: " " + t, "a space behind it": lambda t: t + " ", "a newline behind it": lambda t: t + "\n",
        "CR LF behind it": lambda t: t + "\r\n", "a tab behind it": lambda t: t + "\t", "a NUL behind it": lambda t: t + "\0",
        "two spaces": lambda t: t.replace(" ", "  "), "a tab for the space": lambda t: t.replace(" ", "\t"),
        "no space": lambda t: t.replace(" ", ""), "the word in lower case": lambda t: t.replace(WORD, WORD.lower()),
        "the word in upper case": lambda t: t.replace(WORD, WORD.upper()), "another word": lambda t: t.replace(WORD, "SharedAccessKey "),
        "no word": lambda t: t.replace(WORD, ""), "the word twice": lambda t: WORD + t, "quotes around it": lambda t: f'"{t}"',
        "a byte order mark": lambda t: "\ufeff" + t, "a no-break space": lambda t: t.replace(" ", "\u00a0"),
        "a NUL within": lambda t: t.replace("&sig", "\0&sig"), "only the word": lambda t: WORD.strip(),
        "all of it escaped": lambda t: quote(t), "cut in half": lambda t: t[: len(t) // 2], "one byte": lambda t: "S",
        "17 KiB": lambda t: t + "&skn=" + "x" * 17_000,
    }.items():
        yield Case(f"text: {name}", MALFORMED, text(change))
    yield Case("text: no UTF-8", MALFORMED, lambda now: own()(now).encode() + b"\xff")
    yield Case("text: a broken character within", MALFORMED, lambda now: own()(now).encode().replace(b"pump", b"pu\xc3mp"))


def expiries():
    def signed(se):
        return lambda now: forge.sas(forge.secret("pump-1"), sr_of("pump-1"), se)
    for se in ("0", "1", "999999999", "1000000000"):
        yield Case(f"se {se}", "expired", signed(se))
    for se in ("9999999999", "999999999999"):
        yield Case(f"se {se}", "lifetime_too_long", signed(se))
    for se in ("1000000000000", "-1", "+1900000000", " 1900000000", "0x713fb300", "1.9e9", "1900000000.0", "never", "NaN",
               "1_900_000_000", "1,900,000,000", "%31900000000", "１９００００００００", "99999999999999999999"):
        yield Case(f"se {se!r}", MALFORMED, signed(se))
    yield Case("se in milliseconds", MALFORMED, lambda now: forge.sas(forge.secret("pump-1"), sr_of("pump-1"), (now + SOON) * 1000))
    yield Case("se with leading zeros", None, lambda now: forge.sas(forge.secret("pump-1"), sr_of("pump-1"), f"00{now + SOON}"))
    yield Case("se later than what was signed", INVALID, lambda now: own()(now).replace(f"se={now + SOON}", f"se={now + SOON + 1}"))
    yield Case("se with a zero before what was signed", INVALID, text(lambda t: t.replace("&se=", "&se=0")))


def signatures():
    def with_sig(make):
        def token(now):
            sr, se = quote(sr_of("pump-1")), now + SOON
            return f"{WORD}sr={sr}&sig={make(forge.sas_signature(forge.secret('pump-1'), sr, se), sr, se)}&se={se}"
        return token
    b64 = lambda raw: base64.b64encode(raw).decode()
    lower = lambda escaped: "".join(c.lower() if escaped[max(0, n - 2):n + 1].find("%") >= 0 else c for n, c in enumerate(escaped))
    for name, make in {
        "escaped": lambda raw, *_: quote(b64(raw)), "not escaped": lambda raw, *_: b64(raw),
        "lower escapes": lambda raw, *_: lower(quote(b64(raw))), "every byte escaped": lambda raw, *_: quote_all(b64(raw)),
        "only = escaped": lambda raw, *_: b64(raw).replace("=", "%3D"),
    }.items():
        yield Case(f"sig that is {name}", None, with_sig(make))
    for name, make in {
        "without padding": lambda raw, *_: quote(b64(raw).rstrip("=")), "padded twice": lambda raw, *_: quote(b64(raw) + "="),
        "of the other alphabet": lambda raw, *_: base64.urlsafe_b64encode(b"\xff\xff" + raw[2:]).decode(),
        "escaped twice": lambda raw, *_: quote(quote(b64(b"\xff\xff" + raw[2:]))), "in hexadecimal": lambda raw, *_: raw.hex(),
        "of 31 bytes": lambda raw, *_: quote(b64(raw[:31])), "of 33 bytes": lambda raw, *_: quote(b64(raw + b"\0")),
        "of no byte": lambda *_: "====", "of SHA-1's length": lambda raw, *_: quote(b64(raw[:20])),
        "of SHA-512's length": lambda raw, *_: quote(b64(raw * 2)), "not canonical": lambda raw, *_: quote(b64(raw)[:-2] + "B="),
        "with a space for a plus": lambda raw, *_: b64(b"\xfb\xef\xbe" + raw[3:]).replace("+", " "),
        "with a newline": lambda raw, *_: quote(b64(raw)[:20] + "\n" + b64(raw)[20:]), "with % at its end": lambda raw, *_: quote(b64(raw)) + "%",
        "that is raw bytes": lambda raw, *_: quote_all("x" * 32), "of 8 KiB": lambda raw, *_: "A" * 8192,
    }.items():
        yield Case(f"sig {name}", MALFORMED, with_sig(make))
    for bit in (0, 7, 8, 100, 127, 128, 200, 255):
        flip = lambda raw, bit=bit: bytes(b ^ (1 << bit % 8) if n == bit // 8 else b for n, b in enumerate(raw))
        yield Case(f"sig with bit {bit} flipped", INVALID, with_sig(lambda raw, *_, flip=flip: quote(b64(flip(raw)))))
    for name, key in {
        "another device's key": forge.secret("pump-10"), "the key's text": forge.key_text("pump-1").encode(), "no key": b"",
        "a policy's key": forge.secret("policy device"), "a key of zeros": bytes(32), "the key's first half": forge.secret("pump-1")[:16],
        "the key and a zero": forge.secret("pump-1") + b"\0x", "a group's key": forge.secret("group line7-"),
    }.items():
        yield Case(f"sig by {name}", INVALID, with_sig(lambda _, sr, se, key=key: quote(b64(forge.sas_signature(key, sr, se)))))
    for name, what in {
        "sr alone": "{sr}", "se first": "{se}\n{sr}", "CR LF between": "{sr}\r\n{se}", "no newline": "{sr}{se}", "nothing": "",
        "a newline at the end": "{sr}\n{se}\n", "the skn too": "{sr}\n{se}\ndevice",
    }.items():
        def over(_, sr, se, what=what):
            import hashlib
            import hmac
            return quote(b64(hmac.new(forge.secret("pump-1"), what.format(sr=sr, se=se).encode(), hashlib.sha256).digest()))
        yield Case(f"sig over {name}", INVALID, with_sig(over))
    yield Case("sig of zeros", INVALID, with_sig(lambda *_: quote(b64(bytes(32)))))
    yield Case("sig of a second key", None, lambda now: forge.sas(forge.secret("two/secondary"), sr_of("two"), now + SOON), "two")
    yield Case("sig of a first key", None, own("two"), "two")
    yield Case("sig of no key of two", INVALID, own("two", key="pump-1"), "two")


def resources():
    for name, resource, want in [
        ("slash at its end", "localhost/devices/pump-1/", MALFORMED), ("slash before it", "/localhost/devices/pump-1", MALFORMED),
        ("empty segment", "localhost//devices/pump-1", MALFORMED), ("dot", "localhost/devices/./pump-1", MALFORMED),
        ("dot dot", "localhost/devices/pump-10/../pump-1", MALFORMED), ("dot dot at its end", "localhost/devices/pump-1/..", MALFORMED),
        ("port", "localhost:8883/devices/pump-1", MALFORMED), ("user", "me@localhost/devices/pump-1", MALFORMED),
        ("unknown scheme", "ftp://localhost/devices/pump-1", MALFORMED), ("scheme in upper case", "SB://localhost/devices/pump-1", MALFORMED),
        ("scheme", "https://localhost/devices/pump-1", "resource_out_of_policy"),
        ("scheme of Service Bus", "sb://localhost/devices/pump-1", "resource_out_of_policy"),
        ("no host", "devices/pump-1", "resource_out_of_policy"), ("other host", "elsewhere/devices/pump-1", "host_mismatch"),
        ("host that only begins alike", "localhost.evil.example/devices/pump-1", "host_mismatch"),
        ("host that only ends alike", "evil-localhost/devices/pump-1", "host_mismatch"),
        ("the hub", "localhost", "hub_wide_token"), ("all devices", "localhost/devices", "hub_wide_token"),
        ("Devices in upper case", "localhost/Devices/pump-1", "resource_out_of_policy"),
        ("below the device", "localhost/devices/pump-1/messages", "resource_out_of_policy"),
        ("far below the device", "localhost/devices/pump-1/messages/events/x", "resource_out_of_policy"),
        ("the device twice", "localhost/devices/pump-1/devices/pump-1", "resource_out_of_policy"),
        ("the id in upper case", "localhost/devices/PUMP-1", "device_unknown"), ("an unknown device", "localhost/devices/pump-3", "device_unknown"),
        ("a sibling, by this key", "localhost/devices/pump-10", INVALID), ("a prefix of the id", "localhost/devices/pump-", "device_unknown"),
        ("the id and a space", "localhost/devices/pump-1 ", "device_unknown"), ("a wildcard", "localhost/devices/+", "device_unknown"),
        ("every wildcard", "localhost/devices/#x", MALFORMED), ("a star", "localhost/devices/*", "device_unknown"),
        ("look-alike letters", "localhost/devices/рump-1", "device_unknown"), ("129 bytes", f"localhost/devices/{'x' * 129}", "device_unknown"),
    ]:
        yield Case(f"sr: {name}", want, own(resource=resource))
    for device in (LONG_ID, ODD_ID):
        yield Case(f"sr: the device {device[:30]}", None, own(device), device)
    yield Case("sr: a sibling, by its own key", "device_mismatch", own("pump-10"))
    yield Case("sr: of pump-1, presented by its sibling", "device_mismatch", own("pump-1"), "pump-10")


def policies():
    def by(name, resource=sr_of("pump-1"), skn=None, key=None, se=None):
        return lambda now: forge.sas(key or forge.secret(f"policy {name}"), resource, se or now + SOON, name if skn is None else skn)
    yield Case("policy: good", None, by("device"))
    yield Case("policy: good, of another device", None, by("device", sr_of("pump-2")), "pump-2")
    yield Case("policy: good, of a device without a key", None, by("device", sr_of("keyless")), "keyless")
    yield Case("policy: good, of a group's device", None, by("device", sr_of("line7-3")), "line7-3")
    yield Case("policy: second key", None, by("device", key=forge.secret("policy device/secondary")))
    yield Case("policy: name escaped", None, by("device", skn="%64evice"))
    for name in ("Device", "DEVICE", "device ", "devic", "device2", "iothubowner", "device%00", "../device", "d%C3%A9vice", "x" * 200):
        want = MALFORMED if " " in name else "key_unknown"
        yield Case(f"policy: unknown name {name[:20]!r}", want, by("device", skn=name))
    yield Case("policy: name not UTF-8", MALFORMED, by("device", skn="%FF"))
    yield Case("policy: name escaped badly", MALFORMED, by("device", skn="device%"))
    yield Case("policy: key of another policy", INVALID, by("device", key=forge.secret("policy narrow")))
    yield Case("policy: the device's key", INVALID, by("device", key=forge.secret("pump-1")))
    yield Case("policy: its key, and no skn", INVALID, by("device", skn=""))
    yield Case("policy: skn added to a device's token", INVALID, text(lambda t: t + "&skn=device"))
    yield Case("policy: narrow, in its resource", None, by("narrow"))
    yield Case("policy: narrow, a sibling", "resource_out_of_policy", by("narrow", sr_of("pump-10")), "pump-10")
    yield Case("policy: narrow, another device", "resource_out_of_policy", by("narrow", sr_of("pump-2")), "pump-2")
    yield Case("policy: narrow, wider than it", "resource_out_of_policy", by("narrow", "localhost/devices"))
    yield Case("policy: narrow, the id in upper case", "resource_out_of_policy", by("narrow", "localhost/devices/PUMP-1"))
    yield Case("policy: hub-wide", "hub_wide_token", by("device", "localhost"))
    yield Case("policy: all devices", "hub_wide_token", by("device", "localhost/devices"))
    yield Case("policy: no device in it", "resource_out_of_policy", by("device", "localhost/jobs"))
    yield Case("policy: below a device", "resource_out_of_policy", by("device", "localhost/devices/pump-1/x"))
    yield Case("policy: another host", "resource_out_of_policy", by("device", "elsewhere/devices/pump-1"))
    yield Case("policy: an alias", "resource_out_of_policy", by("device", "hub.example/devices/pump-1"))
    yield Case("policy: a scheme that is not its own", "resource_out_of_policy", by("device", "sb://localhost/devices/pump-1"))
    yield Case("policy: of another device than connects", "device_mismatch", by("device", sr_of("pump-2")))
    yield Case("policy: an unknown device", "device_unknown", by("device", sr_of("pump-3")), "pump-3")
    yield Case("policy: a disabled device", "device_disabled", by("device", sr_of("off")), "off")
    bus = forge.key_text("policy bus").encode()
    for scheme in ("sb", "https", "http"):
        yield Case(f"policy: Service Bus, {scheme}", None, by("bus", f"{scheme}://localhost/devices/pump-1", key=bus))
    yield Case("policy: Service Bus, no scheme", None, by("bus", key=bus))
    yield Case("policy: Service Bus, its key taken as base64", INVALID, by("bus", "sb://localhost/devices/pump-1"))
    yield Case("policy: IoT Hub, its key taken as text", INVALID, by("device", key=forge.key_text("policy device").encode()))
    yield Case("policy: its key is revoked", "revoked", by("withdrawn"))


def groups():
    def of(device, group="line7-", slot="", key=None):
        key = key or forge.derived(forge.secret(f"group {group}{slot}"), device)
        return lambda now: forge.sas(key, sr_of(device), now + SOON)
    yield Case("group: derived", None, of("line7-1"), "line7-1")
    yield Case("group: derived from the second key", None, of("line7-1", slot="/secondary"), "line7-1")
    yield Case("group: derived, another device", None, of("line7-anything.at@all"), "line7-anything.at@all")
    yield Case("group: derived, another group", None, of("line8-1", "line8-"), "line8-1")
    yield Case("group: derived for another device", INVALID, lambda now: forge.sas(
        forge.derived(forge.secret("group line7-"), "line7-2"), sr_of("line7-1"), now + SOON), "line7-1")
    yield Case("group: another device's token", "device_mismatch", of("line7-2"), "line7-1")
    yield Case("group: derived from another group's key", INVALID, of("line7-1", "line8-"), "line7-1")
    yield Case("group: its own key", INVALID, of("line7-1", key=forge.secret("group line7-")), "line7-1")
    yield Case("group: derived from the key's text", INVALID,
               of("line7-1", key=forge.derived(forge.key_text("group line7-").encode(), "line7-1")), "line7-1")
    yield Case("group: derived key as text", INVALID,
               of("line7-1", key=base64.b64encode(forge.derived(forge.secret("group line7-"), "line7-1"))), "line7-1")
    yield Case("group: the prefix in upper case", "device_unknown", of("LINE7-1", "line7-"), "LINE7-1")
    yield Case("group: an id that only begins alike", "device_unknown", of("line7", "line7-"), "line7")
    yield Case("group: a device with a key of its own", None, own("line7-own"), "line7-own")
    yield Case("group: derived, where the device has its own key", INVALID, of("line7-own"), "line7-own")
    yield Case("group: a device that is switched off", "device_disabled", of("line7-off"), "line7-off")


def devices():
    yield Case("device: good", None, own())
    yield Case("device: disabled", "device_disabled", own("off"), "off")
    yield Case("device: disabled, wrong signature", INVALID, own("off", key="pump-1"), "off")
    yield Case("device: unknown", "device_unknown", own("nobody"), "nobody")
    yield Case("device: without a key", INVALID, own("keyless"), "keyless")
    yield Case("device: takes JWT alone", "credential_kind_not_accepted", own("only-jwt"), "only-jwt")
    yield Case("device: takes JWT alone, wrong signature", INVALID, own("only-jwt", key="pump-1"), "only-jwt")
    yield Case("device: takes SAS alone", None, own("only-sas"), "only-sas")
    yield Case("device: revoked", "revoked", own("scrapped"), "scrapped")
    yield Case("device: revoked, wrong signature", INVALID, own("scrapped", key="pump-1"), "scrapped")
    yield Case("device: revoked, by a policy", "revoked",
               lambda now: forge.sas(forge.secret("policy device"), sr_of("scrapped"), now + SOON, "device"), "scrapped")


def edges():
    """Seconds around each limit, decided within the second for which they are made."""
    def at(device, offset, key=None, skn=None):
        return lambda now: forge.sas(forge.secret(key or device), sr_of(device), now + offset, skn)
    expired, long = "expired", "lifetime_too_long"
    for offset, want in [(-SKEW - 1, expired), (-SKEW, expired), (-SKEW + 1, None), (-1, None), (0, None), (1, None),
                         (DAY - 1, None), (DAY, None), (DAY + 1, long), (2 * DAY, long)]:
        yield Case(f"se at now {offset:+}", want, at("pump-1", offset), edge=True)
    for offset, want in [(-SKEW, expired), (599, None), (600, None), (601, long)]:
        yield Case(f"se of a device with ten minutes at now {offset:+}", want, at("brief", offset), "brief", edge=True)
    for offset, want in [(299, None), (300, None), (301, long)]:
        yield Case(f"se of a policy with five minutes at now {offset:+}", want, at("pump-1", offset, "policy short", "short"), edge=True)
    for offset, want in [(600, None), (601, long)]:
        yield Case(f"se by a policy for a device with ten minutes at now {offset:+}", want,
                   at("brief", offset, "policy device", "device"), "brief", edge=True)
    yield Case("se of a policy with five minutes, for a device with ten, at now +301", long,
               at("brief", 301, "policy short", "short"), "brief", edge=True)
    # A SAS token of at most an hour counts as made an hour before it expires.
    for offset, want in [(-1, "revoked"), (0, None), (1, None)]:
        se = ISSUED_BEFORE + 3600 + offset
        yield Case(f"se of a policy whose older tokens are revoked, {offset:+} s", want,
                   lambda now, se=se: forge.sas(forge.secret("policy dated"), sr_of("pump-1"), se, "dated"))
