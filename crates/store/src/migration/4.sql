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
