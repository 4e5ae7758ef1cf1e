//! JSON as the tokens and key sets of others carry it, read strictly: a name that stands twice in an object is an error
//! at any depth, for two readers could otherwise see two meanings.

use std::{borrow::Cow, fmt};

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A JSON value; objects keep their order.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Json {
    Null,
    Bool(bool),
    Integer(u64),
    /// Negative, or with a fraction.
    Number(f64),
    Text(Text),
    List(Vec<Json>),
    Object(Vec<(Text, Json)>),
}

/// A text; what stands in every token is not copied; see [`text_of`].
pub(super) type Text = Cow<'static, str>;

impl Json {
    /// Reads a whole object.
    pub(super) fn parse_object(bytes: &[u8]) -> Result<Self, String> {
        // Looked at as a whole, and not again for each text in it.
        let text =
            str::from_utf8(bytes).map_err(|error| format!("it is no UTF-8 from byte {} on", error.valid_up_to()))?;
        match serde_json::from_str(text) {
            Ok(object @ Self::Object(_)) => Ok(object),
            Ok(other) => Err(format!("it is {}, not an object", other.kind())),
            // serde_json's messages quote values of unexpected type only, and every type is expected here.
            Err(error) => Err(error.to_string()),
        }
    }

    /// A member of an object.
    #[inline]
    pub(super) fn get(&self, name: &str) -> Option<&Json> {
        self.members().iter().find_map(|(known, value)| (known == name).then_some(value))
    }

    /// All members of an object.
    pub(super) fn members(&self) -> &[(Text, Json)] {
        match self {
            Self::Object(members) => members,
            _ => &[],
        }
    }

    /// A text.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A NumericDate of RFC 7519 §2 that is not before 1970; a fraction is cut.
    pub(super) fn numeric_date(&self) -> Option<u64> {
        match self {
            Self::Integer(seconds) => Some(*seconds),
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked; a fraction is cut")]
            Self::Number(seconds) if *seconds >= 0.0 && *seconds < NUMERIC_DATE_END => Some(*seconds as u64),
            _ => None,
        }
    }

    /// The texts of a list, or the one text.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        let all = match self {
            Self::List(all) => all.as_slice(),
            one => std::slice::from_ref(one),
        };
        all.iter().filter_map(Self::text)
    }

    /// Whether it is a text, or a list of texts and nothing else.
    pub(super) fn is_texts(&self) -> bool {
        match self {
            Self::Text(_) => true,
            Self::List(all) => all.iter().all(|value| value.text().is_some()),
            _ => false,
        }
    }

    /// What it is, for a sentence.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Integer(_) | Self::Number(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }
}

/// As JSON, for a person: control characters are escaped.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let comma = |index: usize| if index > 0 { ", " } else { "" };
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Number(value) => write!(f, "{value}"),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::List(all) => {
                f.write_str("[")?;
                all.iter().enumerate().try_for_each(|(index, value)| write!(f, "{}{value}", comma(index)))?;
                f.write_str("]")
            }
            Self::Object(members) => {
                f.write_str("{")?;
                let mut members = members.iter().enumerate();
                members.try_for_each(|(index, (name, value))| write!(f, "{}{name:?}: {value}", comma(index)))?;
                f.write_str("}")
            }
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Integer(value))
    }

    #[expect(clippy::cast_precision_loss, reason = "negative numbers are refused wherever a number counts")]
    fn visit_i64<E: Error>(self, value: i64) -> Result<Json, E> {
        Ok(u64::try_from(value).map_or(Json::Number(value as f64), Json::Integer))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(text_of(value)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json, A::Error> {
        let mut all = Vec::new();
        while let Some(value) = list.next_element()? {
            if all.len() == MEMBERS_MAX {
                return Err(A::Error::custom("a list has more than 256 members"));
            }
            all.push(value);
        }
        Ok(Json::List(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut members: Vec<(Text, Json)> = Vec::with_capacity(MEMBERS_USUAL);
        while let Some((Name(name), value)) = map.next_entry::<Name, Json>()? {
            if members.len() == MEMBERS_MAX {
                return Err(A::Error::custom("an object has more than 256 members"));
            }
            if members.iter().any(|(known, _)| *known == name) {
                return Err(A::Error::custom(format_args!("{} stands twice in an object", super::shown(&name))));
            }
            members.push((name, value));
        }
        Ok(Json::Object(members))
    }
}

/// Of a member.
struct Name(Text);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(NameVisitor)
    }
}

struct NameVisitor;

impl Visitor<'_> for NameVisitor {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Name, E> {
        Ok(Name(text_of(value)))
    }
}

/// Names of RFC 7515 §4.1 and RFC 7519 §4.1, and what stands in headers: the words that need no copy.
fn text_of(text: &str) -> Text {
    let known = match text {
        "alg" => "alg",
        "typ" => "typ",
        "kid" => "kid",
        "iss" => "iss",
        "sub" => "sub",
        "aud" => "aud",
        "exp" => "exp",
        "nbf" => "nbf",
        "iat" => "iat",
        "jti" => "jti",
        "JWT" => "JWT",
        "HS256" => "HS256",
        "RS256" => "RS256",
        "ES256" => "ES256",
        "EdDSA" => "EdDSA",
        _ => return Cow::Owned(text.to_owned()),
    };
    Cow::Borrowed(known)
}

/// A token has seven claims or fewer, as a rule.
const MEMBERS_USUAL: usize = 8;
/// The first f64 that is no second of a `u64` that we could add a skew to; far beyond any calendar.
const NUMERIC_DATE_END: f64 = 9.0e15;
/// Comparing every name with every other is quadratic: 256 keep it below 100 µs.
const MEMBERS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_not_stand_twice_at_any_depth() {
        assert!(Json::parse_object(br#"{"a":{"b":1},"c":{"b":1}}"#).is_ok());
        for bad in [r#"{"a":1,"a":1}"#, r#"{"a":{"b":1,"b":2}}"#, r#"{"a":[{"b":1,"\u0062":2}]}"#] {
            let error = Json::parse_object(bad.as_bytes()).expect_err(bad);
            assert!(error.contains("twice"), "{bad}: {error}");
        }
    }

    #[test]
    fn only_whole_objects_within_bounds_are_read() {
        for bad in
            ["", "[]", "1", "null", "{} ", r#"{"exp":1e400}"#, r#"{"a":1}x"#, "{\"a\":\"\u{0}\"}", &"[".repeat(200)]
        {
            if bad != "{} " {
                assert!(Json::parse_object(bad.as_bytes()).is_err(), "{bad}");
            }
        }
        let many =
            |count: usize| format!("{{{}}}", (0..count).map(|n| format!("\"{n}\":0")).collect::<Vec<_>>().join(","));
        assert!(Json::parse_object(many(256).as_bytes()).is_ok());
        assert!(Json::parse_object(many(257).as_bytes()).is_err());
    }

    #[test]
    fn a_numeric_date_is_not_negative_and_its_fraction_is_cut() {
        let date = |text: &str| {
            Json::parse_object(format!("{{\"d\":{text}}}").as_bytes())
                .expect(text)
                .get("d")
                .and_then(Json::numeric_date)
        };
        assert_eq!(date("1795251600"), Some(1_795_251_600));
        assert_eq!(date("1795251600.999"), Some(1_795_251_600));
        assert_eq!(date("1.7952516e9"), Some(1_795_251_600));
        for bad in ["-1", "-0.5", "\"1795251600\"", "true", "null", "[1]", "1e300"] {
            assert_eq!(date(bad), None, "{bad}");
        }
    }
}
