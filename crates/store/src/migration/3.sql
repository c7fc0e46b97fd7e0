-- The layer that a layer was made on.
ALTER TABLE layer ADD COLUMN parent INTEGER;
