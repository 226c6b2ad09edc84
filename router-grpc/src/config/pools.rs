//! Workers that only prefill or only decode, as they are given on the command line.

use std::collections::HashSet;

use clap::Args;
use router_core::{Declaration, Role};

use super::ConfigError;
use crate::worker_url::{UrlProblem, worker_url};

/// Prefill and decode pools. Workers whose `/server_info` says what they are need not be told apart here.
#[derive(Clone, Debug, Args)]
pub struct PoolConfig {
    /// Base URLs of SGLang servers that only prefill, each with the port of its bootstrap server if that is not what the
    /// server itself says: http://10.0.0.7:30000@8998
    #[arg(
        long,
        env = "ESPALIER_PREFILL_WORKER_URLS",
        num_args = 0..,
        value_delimiter = ',',
        value_name = "URL[@PORT]"
    )]
    pub prefill_worker_urls: Vec<String>,
    /// Base URLs of SGLang servers that only decode
    #[arg(long, env = "ESPALIER_DECODE_WORKER_URLS", num_args = 0.., value_delimiter = ',', value_name = "URL")]
    pub decode_worker_urls: Vec<String>,
}

/// A worker of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PoolMember {
    pub(crate) url: String,
    pub(crate) declaration: Declaration,
}

impl PoolConfig {
    /// Finds all that is wrong.
    pub(super) fn check(&self, worker_urls: &[String], errors: &mut Vec<ConfigError>) {
        let mut seen: HashSet<String> = worker_urls.iter().filter_map(|url| worker_url(url).ok()).collect();
        for (flag, given, member) in self.parsed() {
            let problem = match member {
                Ok(member) if seen.insert(member.url.clone()) => continue,
                Ok(_) => UrlProblem::Twice,
                Err(problem) => problem,
            };
            errors.push(ConfigError::PoolUrl { flag, url: given.to_owned(), problem });
        }
    }

    /// The workers, those that cannot be used left out.
    pub(crate) fn members(&self) -> Vec<PoolMember> {
        self.parsed().filter_map(|(_, _, member)| member.ok()).collect()
    }

    fn parsed(&self) -> impl Iterator<Item = (&'static str, &str, Result<PoolMember, UrlProblem>)> {
        let prefill = self.prefill_worker_urls.iter().map(|url| {
            let (base, port) = with_port(url);
            ("prefill-worker-urls", &**url, member(base, Role::Prefill, port))
        });
        let decode = self.decode_worker_urls.iter();
        prefill.chain(decode.map(|url| ("decode-worker-urls", &**url, member(url, Role::Decode, None))))
    }
}

fn member(url: &str, role: Role, bootstrap_port: Option<u16>) -> Result<PoolMember, UrlProblem> {
    let declaration = Declaration { role: Some(role), bootstrap_port };
    Ok(PoolMember { url: worker_url(url)?, declaration })
}

/// The URL before the last `@` with the port after it, or the whole.
fn with_port(given: &str) -> (&str, Option<u16>) {
    let split = given.rsplit_once('@').and_then(|(url, port)| Some((url, port.parse().ok()?)));
    match split {
        Some((url, port)) if port > 0 => (url, Some(port)),
        _ => (given, None),
    }
}

#[cfg(test)]
mod tests {
    use super::super::RouterConfig;
    use super::*;

    fn pools(prefill: &[&str], decode: &[&str]) -> PoolConfig {
        let owned = |urls: &[&str]| urls.iter().map(|url| (*url).to_owned()).collect();
        PoolConfig { prefill_worker_urls: owned(prefill), decode_worker_urls: owned(decode) }
    }

    #[test]
    fn a_bootstrap_port_may_follow_a_url() {
        let given = pools(&["http://a:1@8998", "http://[::1]:2/"], &["http://b:1"]);
        let members = given.members();
        let port = |at: usize| members[at].declaration.bootstrap_port;
        assert_eq!((&*members[0].url, port(0)), ("http://a:1", Some(8998)));
        assert_eq!((&*members[1].url, port(1)), ("http://[::1]:2", None));
        assert_eq!(members[2].declaration.role, Some(Role::Decode));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_flag() {
        let config = RouterConfig {
            worker_urls: vec!["http://a:1".to_owned()],
            pools: pools(&["http://a:1@8998", "http://u@h:1", "http://c@0"], &["http://b:1@8998"]),
            ..RouterConfig::default()
        };
        let errors = config.check().unwrap_err();
        assert_eq!(errors.0.len(), 4, "{errors}");
        let text = errors.to_string();
        assert!(text.contains("--prefill-worker-urls http://a:1@8998: it is given twice"), "{text}");
        assert!(text.contains("--decode-worker-urls http://b:1@8998"), "{text}");
    }
}
