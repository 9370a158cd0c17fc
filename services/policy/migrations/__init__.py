# SPDX-License-Identifier: Apache-2.0
"""Migrations of the policy service's store; run by `services.chassis.db.Database.open`."""
