//! What the manifest asks for.

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Args {
    /// Spaces to make and destroy.
    pub spaces: u64,
    /// GuestSpaces to make and destroy.
    pub guests: u64,
    /// Go on with this, and with the report, until the machine is switched off; otherwise switch it off after the first one.
    pub stay: bool,
}

/// Reads words: `spaces=N`, `guests=N`, `stay`. The error is the first word that means nothing.
pub fn parse(text: &str) -> Result<Args, &str> {
    let mut args = Args {
        spaces: 10_000,
        guests: 10_000,
        stay: false,
    };
    for word in text.split_whitespace() {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        match (name, value.parse()) {
            ("spaces", Ok(n)) => args.spaces = n,
            ("guests", Ok(n)) => args.guests = n,
            ("stay", Err(_)) if word == "stay" => args.stay = true,
            _ => return Err(word),
        }
    }
    Ok(args)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let of = |spaces, guests, stay| {
            Ok(Args {
                spaces,
                guests,
                stay,
            })
        };
        assert_eq!(parse(""), of(10_000, 10_000, false));
        assert_eq!(parse("spaces=5 stay guests=7"), of(5, 7, true));
        assert_eq!(parse("spaces=x"), Err("spaces=x"));
        assert_eq!(parse("stay=1"), Err("stay=1"));
        assert_eq!(parse("for ever"), Err("for"));
    }
}
