ALTER TABLE image_attestation RENAME TO image_attestation_before;
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
INSERT INTO image_attestation
SELECT called.name, attested.image, position, predicate_type, predicate
FROM image_attestation_before AS attested JOIN (
    SELECT name, image FROM image_name UNION SELECT name, image FROM image_variant UNION SELECT '', id FROM image
) AS called ON called.image = attested.image;
DROP TABLE image_attestation_before;
