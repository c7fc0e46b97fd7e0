-- One row. use_seq counts lease starts; boot is the kernel's boot id at the last open.
CREATE TABLE clock (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    use_seq INTEGER NOT NULL,
    next_layer INTEGER NOT NULL,
    boot TEXT NOT NULL
);
INSERT INTO clock VALUES (1, 1, 1, '');

CREATE TABLE lease (
    id INTEGER PRIMARY KEY,
    session TEXT NOT NULL,
    start INTEGER NOT NULL
);

-- state: 0 ready, 1 being deleted. Times are milliseconds since the epoch.
-- `parent` is what a layer was made on, if anything; that may be gone.
CREATE TABLE layer (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    state INTEGER NOT NULL DEFAULT 0,
    synced INTEGER NOT NULL DEFAULT 0,
    diff_id TEXT,
    description TEXT NOT NULL,
    size INTEGER,
    created INTEGER NOT NULL,
    used INTEGER NOT NULL,
    use_seq INTEGER NOT NULL,
    parent INTEGER
);
CREATE INDEX layer_by_diff_id ON layer (diff_id) WHERE diff_id IS NOT NULL;
CREATE INDEX layer_unsynced ON layer (created) WHERE synced = 0;

CREATE TABLE compressed (
    layer INTEGER NOT NULL REFERENCES layer ON DELETE CASCADE,
    compression TEXT NOT NULL,
    descriptor TEXT NOT NULL,
    PRIMARY KEY (layer, compression)
) WITHOUT ROWID;

-- A layer's tar with times after an epoch set to it (seconds): its digest, and what it compresses to.
CREATE TABLE clamped (
    layer INTEGER NOT NULL REFERENCES layer ON DELETE CASCADE,
    epoch INTEGER NOT NULL,
    diff_id TEXT NOT NULL,
    PRIMARY KEY (layer, epoch)
) WITHOUT ROWID;

CREATE TABLE clamped_compressed (
    layer INTEGER NOT NULL REFERENCES layer ON DELETE CASCADE,
    epoch INTEGER NOT NULL,
    compression TEXT NOT NULL,
    descriptor TEXT NOT NULL,
    PRIMARY KEY (layer, epoch, compression)
) WITHOUT ROWID;

CREATE TABLE blob (
    id INTEGER PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    state INTEGER NOT NULL DEFAULT 0,
    synced INTEGER NOT NULL DEFAULT 0,
    size INTEGER NOT NULL,
    created INTEGER NOT NULL,
    used INTEGER NOT NULL,
    use_seq INTEGER NOT NULL
);
CREATE INDEX blob_unsynced ON blob (created) WHERE synced = 0;

CREATE TABLE image (
    id TEXT PRIMARY KEY,
    config BLOB NOT NULL,
    platform TEXT NOT NULL,
    manifest_type TEXT,
    manifest_digest TEXT,
    manifest BLOB,
    stored INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE image_layer (
    image TEXT NOT NULL REFERENCES image ON DELETE CASCADE,
    position INTEGER NOT NULL,
    layer INTEGER NOT NULL,
    diff_id TEXT NOT NULL,
    blob TEXT,
    blob_digest TEXT,
    PRIMARY KEY (image, position)
) WITHOUT ROWID;
CREATE INDEX image_layer_by_layer ON image_layer (layer);
CREATE INDEX image_layer_by_blob ON image_layer (blob_digest) WHERE blob_digest IS NOT NULL;

CREATE TABLE image_name (
    name TEXT PRIMARY KEY,
    image TEXT NOT NULL REFERENCES image ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX image_name_by_image ON image_name (image);

-- The further platforms of a name that stands for several images.
CREATE TABLE image_variant (
    name TEXT NOT NULL REFERENCES image_name ON DELETE CASCADE,
    position INTEGER NOT NULL,
    image TEXT NOT NULL REFERENCES image ON DELETE CASCADE,
    PRIMARY KEY (name, position)
) WITHOUT ROWID;
CREATE INDEX image_variant_by_image ON image_variant (image);

-- What a name stood for where its images came from: its index, last, after all the manifests that leads to.
CREATE TABLE image_document (
    name TEXT NOT NULL REFERENCES image_name ON DELETE CASCADE,
    position INTEGER NOT NULL,
    media_type TEXT NOT NULL,
    digest TEXT NOT NULL,
    bytes BLOB NOT NULL,
    PRIMARY KEY (name, position)
) WITHOUT ROWID;

-- The blobs which those name.
CREATE TABLE image_blob (
    name TEXT NOT NULL REFERENCES image_name ON DELETE CASCADE,
    position INTEGER NOT NULL,
    digest TEXT NOT NULL,
    descriptor TEXT NOT NULL,
    PRIMARY KEY (name, position)
) WITHOUT ROWID;
CREATE INDEX image_blob_by_digest ON image_blob (digest);

-- What is attested of an image under a name: in-toto predicates. The name is empty for an image that was stored under
-- none.
CREATE TABLE image_attestation (
    name TEXT NOT NULL,
    image TEXT NOT NULL REFERENCES image ON DELETE CASCADE,
    position INTEGER NOT NULL,
    predicate_type TEXT NOT NULL,
    predicate BLOB NOT NULL,
    PRIMARY KEY (name, image, position)
) WITHOUT ROWID;
CREATE INDEX image_attestation_by_image ON image_attestation (image);
CREATE TRIGGER image_attestation_of_name AFTER DELETE ON image_name BEGIN
    DELETE FROM image_attestation WHERE name = OLD.name;
END;

CREATE TABLE cache_mount (
    name TEXT PRIMARY KEY,
    description TEXT NOT NULL,
    created INTEGER NOT NULL,
    used INTEGER NOT NULL
) WITHOUT ROWID;
