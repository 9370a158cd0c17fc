"""Migrations of ipam's store; run by `services.chassis.db.Database.open`."""
