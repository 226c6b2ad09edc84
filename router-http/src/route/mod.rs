//! How every route is handled, decided by its method and path: one table ([`table`]), which `docs/api.md` shows.
//!
//! What is not in the table is passed on by load.

mod table;

use std::fmt;

use http::Method;

pub(crate) use self::table::ROUTES;
use crate::decode::RouteKind;

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Route {
    /// Separated by spaces.
    pub(crate) methods: &'static str,
    /// `{id}` stands for one segment, `{model}` for all that is left.
    pub(crate) path: &'static str,
    pub(crate) handling: Handling,
    pub(crate) access: Access,
}

/// How a route is handled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handling {
    /// By the router itself, without asking anybody.
    Own,
    /// A generation: by the prefix of its prompt.
    Prefix(RouteKind),
    /// Anything without a prompt worth remembering: by load.
    Load,
    /// By load, and where it went is remembered under the session's id in the answer.
    OpenSession,
    /// At the worker that has the session.
    CloseSession,
    /// At the worker that has the stored response named by the path.
    StoredResponse,
    /// It concerns all workers.
    Many(Concern),
}

/// How a request concerns all workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Concern {
    /// Asked of all of them and answered as one.
    Fleet(Question),
    /// Sent to every one; each one's result is told.
    Control(Effect),
    /// Sent to the one that the caller names, since all of them doing it would be wrong.
    Named(Effect),
    /// Sent to the one that has the request.
    Abort,
}

/// What a fleet is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    /// The models of all.
    Models,
    /// One of them.
    Model,
    /// Ollama's list of models.
    Tags,
    /// What they serve.
    ModelInfo,
    /// How they run.
    ServerInfo,
    /// The loads of all ranks.
    Loads,
    /// Their metrics.
    Metrics,
    /// Whether one can generate.
    HealthGenerate,
    /// Anything else: what each says.
    Each,
}

/// What a control call that succeeded at a worker changes in what the router believes of that worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    None,
    /// The cache is empty, or what it holds is of other weights.
    Flushes,
    Pauses,
    Continues,
}

/// Which key a route asks for, as SGLang has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// None.
    Open,
    /// The API key.
    Key,
    /// The admin key if there is one, or else the API key.
    Admin,
}

/// What is not in the table.
static UNKNOWN: Route = Route { methods: "*", path: "*", handling: Handling::Load, access: Access::Key };

/// The row of a request.
pub(crate) fn of(method: &Method, path: &str) -> &'static Route {
    // Nearly every path is a row's own, which is seen sooner than that it fits one.
    let own = ROUTES.iter().find(|route| route.path == path && route.takes(method));
    own.or_else(|| ROUTES.iter().find(|route| route.matches(method, path))).unwrap_or(&UNKNOWN)
}

impl Route {
    fn matches(&self, method: &Method, path: &str) -> bool {
        let fits = match self.path.split_once('{') {
            None => self.path == path,
            Some(_) => self.parameter(path).is_some(),
        };
        fits && self.takes(method)
    }

    fn takes(&self, method: &Method) -> bool {
        let method = method.as_str();
        self.methods == method || self.methods.split(' ').any(|own| own == method)
    }

    /// What stands in a path in place of the row's parameter.
    pub(crate) fn parameter<'p>(&self, path: &'p str) -> Option<&'p str> {
        let (before, rest) = self.path.split_once('{')?;
        let (name, after) = rest.split_once('}')?;
        let value = path.strip_prefix(before)?.strip_suffix(after)?;
        (!value.is_empty() && (name == "model" || !value.contains('/'))).then_some(value)
    }

    /// The kind by which requests are counted and decoded.
    pub(crate) fn kind(&self) -> RouteKind {
        match self.handling {
            Handling::Prefix(kind) => kind,
            Handling::OpenSession | Handling::CloseSession | Handling::StoredResponse => RouteKind::Session,
            Handling::Many(Concern::Fleet(_)) => RouteKind::Fleet,
            Handling::Many(_) => RouteKind::Control,
            Handling::Own | Handling::Load => RouteKind::Other,
        }
    }
}

/// As `docs/api.md` says it.
impl fmt::Display for Handling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "router",
            Self::Prefix(_) => "prefix",
            Self::Load => "load",
            Self::OpenSession | Self::CloseSession | Self::StoredResponse => "sticky",
            Self::Many(Concern::Fleet(_)) => "fleet",
            Self::Many(Concern::Control(_)) => "control",
            Self::Many(Concern::Named(_)) => "one worker",
            Self::Many(Concern::Abort) => "abort",
        })
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "none",
            Self::Key => "api",
            Self::Admin => "admin",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_matched_whole_and_by_method() {
        let handling = |method: Method, path| of(&method, path).handling;
        assert_eq!(handling(Method::PUT, "/generate"), Handling::Prefix(RouteKind::Generate));
        assert_eq!(handling(Method::DELETE, "/generate"), Handling::Load);
        assert_eq!(handling(Method::GET, "/v1/models"), Handling::Many(Concern::Fleet(Question::Models)));
        assert_eq!(
            handling(Method::GET, "/v1/models/org/name"),
            Handling::Many(Concern::Fleet(Question::Model))
        );
        assert_eq!(of(&Method::GET, "/v1/models/a/b").parameter("/v1/models/a/b"), Some("a/b"));
        assert_eq!(handling(Method::POST, "/v1/responses/resp_1/cancel"), Handling::StoredResponse);
        assert_eq!(handling(Method::GET, "/v1/responses/"), Handling::Load);
        assert_eq!(handling(Method::GET, "/v1/responses/a/b"), Handling::Load);
        assert_eq!(handling(Method::POST, "/nobody/knows"), Handling::Load);
    }

    /// The list is `GET /openapi.json` of a real SGLang 0.5.23 (Apache-2.0).
    #[test]
    fn every_route_of_the_real_server_has_a_row() {
        let routes = include_str!("../../tests/samples/sglang_routes_0.5.23.txt");
        let routes: Vec<_> = routes.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(routes.len(), 108);
        for line in routes {
            let (method, path) = line.split_once(' ').unwrap();
            let has = |route: &Route| route.path == path && route.methods.split(' ').any(|own| own == method);
            assert!(ROUTES.iter().any(has), "{line} has no row of its own");
        }
    }

    #[test]
    fn no_row_hides_another() {
        for route in ROUTES {
            for method in route.methods.split(' ') {
                let path = route.path.replace("{id}", "x").replace("{model}", "x");
                let found = of(&method.parse().unwrap(), &path);
                assert_eq!((found.path, found.methods), (route.path, route.methods));
            }
        }
    }

    #[test]
    fn the_documentation_shows_this_table() {
        let docs = include_str!("../../../docs/api.md");
        let shown: Vec<&str> = docs.lines().filter(|line| line.starts_with("| `")).collect();
        let rows: Vec<String> = ROUTES
            .iter()
            .map(|route| {
                format!("| `{}` | `{}` | {} | {} |", route.methods, route.path, route.handling, route.access)
            })
            .collect();
        assert_eq!(shown.len(), rows.len(), "as many rows; the table is:\n{}", rows.join("\n"));
        for (shown, row) in shown.iter().zip(&rows) {
            assert!(shown.starts_with(row.as_str()), "docs/api.md has\n{shown}\nwhere the code has\n{row}");
        }
    }
}
