"""Migrations of identity's store; run by `services.chassis.db.Database.open`."""
