package store

// migrations bring the database from version i to i+1, in order; PRAGMA
// user_version holds the version. A published entry is never edited: a change
// is a new one at the end.
//
// Times are nanoseconds since 1970 UTC, 0 for unknown. Sizes are bytes. Tables
// of small rows looked up by key are WITHOUT ROWID, which saves one of the two
// lookups.
var migrations = [...]string{`
CREATE TABLE images (
	id       TEXT PRIMARY KEY,  -- digest of config
	config   BLOB NOT NULL,
	platform TEXT NOT NULL,
	manifest BLOB,              -- of a pulled image
	desc     TEXT,              -- its descriptor, JSON
	created  INTEGER NOT NULL,
	added    INTEGER NOT NULL,
	size     INTEGER NOT NULL
);
CREATE TABLE image_layers (
	image  TEXT NOT NULL,
	pos    INTEGER NOT NULL,
	diffid TEXT NOT NULL,
	layer  TEXT NOT NULL,
	PRIMARY KEY (image, pos)
) WITHOUT ROWID;
CREATE INDEX image_layers_layer ON image_layers (layer);
CREATE TABLE tags (
	name     TEXT NOT NULL,
	platform TEXT NOT NULL,
	image    TEXT NOT NULL,
	updated  INTEGER NOT NULL,
	PRIMARY KEY (name, platform)
) WITHOUT ROWID;
CREATE INDEX tags_image ON tags (image);
CREATE TABLE repo_digests (
	name     TEXT NOT NULL,
	digest   TEXT NOT NULL,
	platform TEXT NOT NULL,
	image    TEXT NOT NULL,
	PRIMARY KEY (digest, name, platform)
) WITHOUT ROWID;
CREATE INDEX repo_digests_image ON repo_digests (image);

CREATE TABLE layers (
	id      TEXT PRIMARY KEY,
	diffid  TEXT NOT NULL,      -- '' until computed
	key     TEXT UNIQUE,        -- of a pulled layer
	tarsize INTEGER NOT NULL,
	size    INTEGER NOT NULL,
	files   INTEGER NOT NULL,
	marks   INTEGER NOT NULL,   -- 1 if it has whiteouts or opaque directories
	created INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX layers_diffid ON layers (diffid);
CREATE TABLE pins (
	proc  TEXT NOT NULL,
	layer TEXT NOT NULL,
	PRIMARY KEY (proc, layer)
) WITHOUT ROWID;
CREATE TABLE compressed (
	diffid TEXT NOT NULL,
	digest TEXT NOT NULL,
	desc   TEXT NOT NULL,       -- descriptor, JSON
	added  INTEGER NOT NULL,
	PRIMARY KEY (diffid, digest)
) WITHOUT ROWID;
CREATE TABLE blob_sources (
	digest TEXT NOT NULL,
	repo   TEXT NOT NULL,
	added  INTEGER NOT NULL,
	PRIMARY KEY (digest, repo)
) WITHOUT ROWID;

CREATE TABLE cache (
	key     TEXT PRIMARY KEY,
	outputs TEXT NOT NULL,      -- JSON list of chains' text forms
	name    TEXT NOT NULL,
	size    INTEGER NOT NULL,
	created INTEGER NOT NULL,
	used    INTEGER NOT NULL,
	uses    INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE cache_links (
	link TEXT PRIMARY KEY,
	key  TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX cache_links_key ON cache_links (key);
CREATE TABLE cache_mounts (
	id      TEXT PRIMARY KEY,
	dir     TEXT NOT NULL,
	name    TEXT NOT NULL,
	created INTEGER NOT NULL,
	used    INTEGER NOT NULL,
	size    INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE memo (
	kind  TEXT NOT NULL,
	key   TEXT NOT NULL,
	val   BLOB NOT NULL,
	added INTEGER NOT NULL,
	PRIMARY KEY (kind, key)
) WITHOUT ROWID;

CREATE TABLE builds (
	id       TEXT PRIMARY KEY,
	target   TEXT NOT NULL,
	name     TEXT NOT NULL,
	started  INTEGER NOT NULL,
	finished INTEGER NOT NULL,
	status   TEXT NOT NULL,
	summary  BLOB NOT NULL,     -- JSON
	detail   BLOB NOT NULL
);
CREATE INDEX builds_target ON builds (target, started);
CREATE INDEX builds_started ON builds (started);
`, `
CREATE TABLE containers (
	id      TEXT PRIMARY KEY,
	name    TEXT NOT NULL UNIQUE,
	image   TEXT NOT NULL,
	chains  TEXT NOT NULL,      -- text forms of chains kept from prune, the image's first
	created INTEGER NOT NULL,
	status  TEXT NOT NULL,      -- as in state
	record  BLOB NOT NULL,      -- JSON: what was asked for
	state   BLOB NOT NULL       -- JSON: how it stands
);
CREATE INDEX containers_image ON containers (image);
CREATE TABLE networks (
	id      TEXT PRIMARY KEY,
	name    TEXT NOT NULL UNIQUE,
	created INTEGER NOT NULL,
	record  BLOB NOT NULL       -- JSON
);
CREATE TABLE endpoints (
	network   TEXT NOT NULL,
	container TEXT NOT NULL,
	name      TEXT NOT NULL,    -- the container's
	ip4       TEXT,             -- NULL for none
	ip6       TEXT,
	record    BLOB NOT NULL,    -- JSON
	PRIMARY KEY (network, container),
	UNIQUE (network, ip4),
	UNIQUE (network, ip6)
) WITHOUT ROWID;
CREATE INDEX endpoints_container ON endpoints (container);
CREATE TABLE ports (
	proto     TEXT NOT NULL,
	ip        TEXT NOT NULL,
	port      INTEGER NOT NULL,
	container TEXT NOT NULL,
	record    BLOB NOT NULL,    -- JSON
	PRIMARY KEY (proto, ip, port)
) WITHOUT ROWID;
CREATE INDEX ports_container ON ports (container);
CREATE TABLE volumes (
	name      TEXT PRIMARY KEY,
	anonymous INTEGER NOT NULL, -- 1 if a container made it without a name
	created   INTEGER NOT NULL,
	record    BLOB NOT NULL     -- JSON
) WITHOUT ROWID;
CREATE TABLE container_volumes (
	container TEXT NOT NULL,
	volume    TEXT NOT NULL,
	PRIMARY KEY (container, volume)
) WITHOUT ROWID;
CREATE INDEX container_volumes_volume ON container_volumes (volume);
CREATE TABLE events (
	seq    INTEGER PRIMARY KEY,
	at     INTEGER NOT NULL,
	type   TEXT NOT NULL,
	action TEXT NOT NULL,
	actor  TEXT NOT NULL,
	attrs  BLOB NOT NULL        -- JSON
);
CREATE INDEX events_at ON events (at);
`}
