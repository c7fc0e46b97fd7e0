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

-- The further platforms of a name that stands for several images.
CREATE TABLE image_variant (
    name TEXT NOT NULL REFERENCES image_name ON DELETE CASCADE,
    position INTEGER NOT NULL,
    image TEXT NOT NULL REFERENCES image ON DELETE CASCADE,
    PRIMARY KEY (name, position)
) WITHOUT ROWID;
CREATE INDEX image_variant_by_image ON image_variant (image);

-- What is attested of an image: in-toto predicates.
CREATE TABLE image_attestation (
    image TEXT NOT NULL REFERENCES image ON DELETE CASCADE,
    position INTEGER NOT NULL,
    predicate_type TEXT NOT NULL,
    predicate BLOB NOT NULL,
    PRIMARY KEY (image, position)
) WITHOUT ROWID;
