"""The one way in which programs and maps come into force: prepared beside what is there, decided on by one
rename, then switched to in place. docs/migration.md tells the protocol.

Whatever dies or fails on the way, the node ends wholly before or wholly after, and forwards meanwhile.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from services.loader.bpf.adoption import InForce, fingerprint, load_record, save_record
from services.loader.bpf.attach import detach, pin_replacing
from services.loader.bpf.attach.places import Place
from services.loader.bpf.census import count_elements
from services.loader.bpf.compiler import PREBUILT_DIR, Compiled, compile_sources
from services.loader.bpf.config import NodeConfig
from services.loader.bpf.errors import (
    BpfError,
    FixedSize,
    MapFull,
    UnknownMap,
    UnknownVariable,
    VerifierError,
)
from services.loader.bpf.load_report import LoadReport, MigratedMap, ObjectReport
from services.loader.bpf.map_plan import Action, MapPlan, conversions, needed_entries, plan_map
from services.loader.bpf.maps import Map, MapDefinition, MapShape, open_pinned, shape_of
from services.loader.bpf.migration import Filled, Migration, merge
from services.loader.bpf.native import check, lib
from services.loader.bpf.objects import LoadedObject, MapDeclaration, OpenedObject, Program
from services.loader.bpf.pins import PinDirectory
from services.loader.bpf.recovery import (
    ENDPOINT_DEVICES,
    Recovered,
    discard,
    promote,
    recover,
)
from services.loader.bpf.switching import (
    AttachOptions,
    DevicePlace,
    Switchboard,
    close_programs,
    descriptors,
    endpoint_devices,
    open_programs,
)
from services.loader.bpf.verifier_log import keep_log
from services.loader.failpoints import passed

# What only masquerading uses, and only the overlay.
_NAT_MAPS = ("nat4", "nat6", "nat_exclude4", "nat_exclude6", "nat_state")
_ARRAYS = ("array", "percpu_array")
_OVERLAY_PROGRAMS = ("from_overlay", "to_overlay")


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be in force: a node's configuration, made of these sources, on these devices.

    ``state_dir`` "" keeps no record: then everything is loaded each time. ``rebuild``: compiled anew, too.
    """

    config: NodeConfig
    pins: PinDirectory
    sources: Sequence[str]
    source_dir: str
    cache_dir: str
    places: Sequence[DevicePlace]
    flags: Sequence[str] = ()
    state_dir: str = ""
    rebuild: bool = False
    options: AttachOptions = field(default_factory=AttachOptions)
    prebuilt_dir: str = PREBUILT_DIR

    @property
    def board(self) -> Switchboard:
        """The node's devices."""
        return Switchboard(self.pins, self.places, self.options)


@dataclass(frozen=True, slots=True)
class InKernel:
    """Programs and maps in force, the caller's to close, and what it took. ``resized`` are the maps whose
    size is not the declared one.
    """

    programs: dict[str, Program]
    maps: dict[str, Map]
    report: LoadReport
    resized: frozenset[str] = field(default_factory=frozenset)


def unneeded(config: NodeConfig) -> frozenset[str]:
    """Programs and maps that a node so configured never uses: they are not loaded."""
    names: tuple[str, ...] = ()
    if not config.masquerade:
        names += _NAT_MAPS
    if not config.vxlan_ifindex:
        names += _OVERLAY_PROGRAMS
    return frozenset(names)


def open_in_kernel(request: Request, prepare: Callable[[Mapping[str, Map]], None]) -> InKernel:
    """Brings the request into force, or finds that it is. ``prepare`` makes maps agree with each other before
    a program runs that reads them.

    Raises DatapathUnavailable, MapMismatch, MapFull, VerifierError or BpfError; then what was in force before
    is.
    """
    try:
        recovered = recover(request.pins, request.board)
        compiled = compile_sources(
            request.source_dir,
            request.sources,
            request.cache_dir,
            request.flags,
            prebuilt_dir=request.prebuilt_dir,
            fresh=request.rebuild,
        )
        passed("load.compiled")
        return _Opening(request, prepare, compiled, recovered).run()
    except OSError as problem:
        raise BpfError(problem.errno or errno.EIO, "open the datapath", str(problem)) from problem
    except VerifierError as problem:
        problem.log_path = keep_log(request.state_dir, problem.program, problem.log)
        raise


class _Opening:
    def __init__(
        self,
        request: Request,
        prepare: Callable[[Mapping[str, Map]], None],
        compiled: Sequence[Compiled],
        recovered: Recovered,
    ) -> None:
        self._request = request
        self._pins = request.pins
        self._prepare = prepare
        self._compiled = compiled
        self._recovered = recovered
        self._constants = request.config.constants()
        self._fingerprint = fingerprint(
            [each.path for each in compiled],
            self._constants,
            request.config.map_sizes,
            (*request.flags, *sorted(unneeded(request.config))),
        )

    def run(self) -> InKernel:
        adopted = None if self._request.rebuild else self._adopt()
        if adopted is not None:
            return adopted
        with ExitStack() as stack:
            objects = []
            for each in self._compiled:
                opened = OpenedObject(each.path)
                stack.callback(opened.close)
                objects.append(opened)
            declared = self._declared(objects)
            pinned = self._pinned(declared, stack)
            plans = self._plan(declared, pinned)
            old = open_programs(self._pins.programs)
            stack.callback(close_programs, old)
            loaded = self._load(objects, pinned, plans)
            made = _Made(self._pins, declared, pinned, plans, loaded)
            with ExitStack() as undo:
                undo.callback(made.close)
                passed("load.loaded")
                report = self._bring_into_force(made, old)
                undo.pop_all()
            resized = frozenset(name for name in self._request.config.map_sizes if name in made.maps)
            record = InForce.of(self._fingerprint, made.programs, made.shared(), resized)
            # Without it the next start loads again; that is all.
            _quietly(save_record, self._request.state_dir, record)
            return InKernel(made.programs, made.maps, report, resized)

    # -- what is there already

    def _adopt(self) -> InKernel | None:
        record = load_record(self._request.state_dir)
        if record is None or record.fingerprint != self._fingerprint:
            return None
        programs = open_programs(self._pins.programs)
        maps: dict[str, Map] = {}
        with ExitStack() as undo:
            undo.callback(close_programs, programs)
            for name in self._pins.map_names():
                found = open_pinned(self._pins.map_path(name), name)
                if found is not None:
                    maps[name] = found
                    undo.callback(found.close)
            if not record.agrees(self._fingerprint, programs, maps.values()):
                return None
            self._prepare(maps)
            started = time.perf_counter()
            endpoints = endpoint_devices(maps.get(ENDPOINT_DEVICES))
            moved = len(endpoints)
            board = self._request.board
            if not board.in_place({name: each.id for name, each in programs.items()}, endpoints):
                moved = board.switch(descriptors(programs), endpoints)
            seconds = time.perf_counter() - started
            undo.pop_all()
        report = LoadReport(
            self._object_reports([], programs), seconds, moved, adopted=True, recovered=self._recovered
        )
        return InKernel(programs, maps, report, frozenset(record.resized))

    # -- what is wanted

    def _declared(self, objects: Sequence[OpenedObject]) -> dict[str, MapDeclaration]:
        known = {name for opened in objects for name in opened.constants}
        for name in self._constants:
            if name not in known:
                raise UnknownVariable(name, known)
        maps = {name for opened in objects for name in opened.maps}
        for name in self._request.config.map_sizes:
            if name not in maps:
                raise UnknownMap(name, maps)
            for opened in objects:
                if name in opened.maps and opened.maps[name].definition.type_name in _ARRAYS:
                    raise FixedSize(name)
        left_out = unneeded(self._request.config)
        declared: dict[str, MapDeclaration] = {}
        for opened in objects:
            opened.configure(self._constants)
            opened.leave_out(left_out)
            for name, size in self._request.config.map_sizes.items():
                if name in opened.maps:
                    opened.resize(name, size)
            if set(opened.programs) <= left_out:
                continue
            for name, each in opened.maps.items():
                if each.shared and name not in left_out:
                    declared.setdefault(name, each)
        return declared

    def _pinned(self, declared: Mapping[str, MapDeclaration], stack: ExitStack) -> dict[str, Map]:
        found = {}
        for name in declared:
            pinned = open_pinned(self._pins.map_path(name), name)
            if pinned is not None:
                stack.callback(pinned.close)
                found[name] = pinned
        return found

    def _plan(self, declared: Mapping[str, MapDeclaration], pinned: Mapping[str, Map]) -> dict[str, MapPlan]:
        plans = {}
        for name, each in declared.items():
            there = pinned.get(name)
            plans[name] = plan_map(
                name,
                MapShape(each.definition, each.key, each.value),
                shape_of(there.fd) if there is not None else None,
                self._pins.map_path(name),
            )
        for name, plan in plans.items():
            if plan.action is Action.MIGRATE:
                check_room(pinned[name], declared[name].definition)
        return plans

    # -- what comes

    def _load(
        self, objects: Sequence[OpenedObject], pinned: Mapping[str, Map], plans: Mapping[str, MapPlan]
    ) -> list[LoadedObject]:
        shared = {name: pinned[name].fd for name, plan in plans.items() if plan.action is Action.REUSE}
        left_out = unneeded(self._request.config)
        loaded: list[LoadedObject] = []
        with ExitStack() as undo:
            for opened in objects:
                if set(opened.programs) <= left_out:
                    loaded.append(LoadedObject({}, {}, 0.0))
                    continue
                for name in opened.maps:
                    if name in shared:
                        opened.reuse(name, shared[name])
                each = opened.load()
                undo.callback(each.close)
                loaded.append(each)
                shared |= {name: fd for name, fd in each.maps.items() if name in plans}
            undo.pop_all()
        return loaded

    def _bring_into_force(self, made: _Made, old: Mapping[str, Program]) -> LoadReport:
        change = _Change(self._request, made, old, self._prepare)
        if made.staged:
            change.migrate()
        else:
            change.replace()
        removed = made.remove_unneeded()
        return LoadReport(
            self._object_reports(made.loaded, made.programs),
            change.attach_seconds,
            change.endpoints,
            tuple(change.migrated),
            removed,
            recovered=self._recovered,
        )

    def _object_reports(
        self, loaded: Sequence[LoadedObject], programs: Mapping[str, Program]
    ) -> tuple[ObjectReport, ...]:
        if not loaded:
            return tuple(
                ObjectReport(
                    each.source, True, each.seconds, 0.0, tuple(programs.values()) if not index else ()
                )
                for index, each in enumerate(self._compiled)
            )
        return tuple(
            ObjectReport(
                source.source, source.cache_hit, source.seconds, obj.seconds, tuple(obj.programs.values())
            )
            for source, obj in zip(self._compiled, loaded, strict=True)
        )


def check_room(pinned: Map, definition: MapDefinition) -> None:
    """Raises MapFull if a map so defined may not hold what the pinned one does. Raises BpfError."""
    if definition.type_name in _ARRAYS:
        if definition.max_entries < pinned.definition.max_entries:
            used = [
                int.from_bytes(key, "little") + 1
                for key, value in pinned.items_of(pinned.cell_size)
                if any(value)
            ]
            entries = max(used, default=0)
            if entries > definition.max_entries:
                raise MapFull(pinned.name, entries, definition.max_entries)
        return
    cpus = int(lib.libbpf_num_possible_cpus())

    def fits(entries: int) -> bool:
        return needed_entries(entries, definition, pinned.definition, cpus) <= definition.max_entries

    if fits(pinned.definition.max_entries):
        # Counting takes as long as copying.
        return
    entries = count_elements(pinned.id) or 0
    if not fits(entries):
        raise MapFull(pinned.name, entries, definition.max_entries)


class _Made:
    """What was loaded and is not in force yet."""

    def __init__(
        self,
        pins: PinDirectory,
        declared: Mapping[str, MapDeclaration],
        pinned: Mapping[str, Map],
        plans: Mapping[str, MapPlan],
        loaded: Sequence[LoadedObject],
    ) -> None:
        self.pins = pins
        self.declared = declared
        self.pinned = pinned
        self.plans = plans
        self.loaded = loaded
        self.programs: dict[str, Program] = {}
        self.maps: dict[str, Map] = {}
        for each in loaded:
            self.programs.update(each.programs)
            for name, fd in each.maps.items():
                # The same map, once per object that uses it.
                if name in self.maps:
                    os.close(fd)
                else:
                    self.maps[name] = Map(name, fd)

    def close(self) -> None:
        close_programs(self.programs)
        for each in self.maps.values():
            each.close()

    def shared(self) -> list[Map]:
        """Those of the maps that are pinned."""
        return [self.maps[name] for name in self.declared]

    def planned(self, *actions: Action) -> list[str]:
        return [name for name, plan in self.plans.items() if plan.action in actions]

    @property
    def staged(self) -> bool:
        """Whether a map takes the place of one that is pinned."""
        return bool(self.planned(Action.MIGRATE, Action.RECREATE))

    def pin(self, stage: PinDirectory, names: Sequence[str]) -> None:
        for name in names:
            path = stage.map_path(name)
            check(lib.bpf_obj_pin(self.maps[name].fd, path.encode()), f"pin map {path}")

    def remove_unneeded(self) -> tuple[str, ...]:
        """Removes pins of maps and programs that nothing in force uses; returns their names."""
        removed = []
        for name, path in (
            *(
                (name, self.pins.map_path(name))
                for name in self.pins.map_names()
                if name not in self.declared
            ),
            *(
                (name, self.pins.program_path(name))
                for name in self.pins.program_names()
                if name not in self.programs
            ),
        ):
            # One that cannot be removed is in nobody's way.
            _quietly(os.unlink, path)
            removed.append(name)
        return tuple(removed)


class _Change:
    """From what is in force to what was made."""

    def __init__(
        self,
        request: Request,
        made: _Made,
        old: Mapping[str, Program],
        prepare: Callable[[Mapping[str, Map]], None],
    ) -> None:
        self._request = request
        self._pins = request.pins
        self._board = request.board
        self._made = made
        self._old = old
        self._prepare = prepare
        self.attach_seconds = 0.0
        self.endpoints = 0
        self.migrated: list[MigratedMap] = []

    def replace(self) -> None:
        """No map changes: new ones are pinned, and every device moves to the new programs."""
        created = self._made.planned(Action.CREATE)
        try:
            self._made.pin(self._pins, created)
            self._prepare(self._made.maps)
            self._switch()
            for program in self._made.programs.values():
                pin_replacing(program.fd, self._pins.program_path(program.name))
                passed("pin.program")
        except BaseException:
            self._switch_back()
            for program in self._old.values():
                _quietly(pin_replacing, program.fd, self._pins.program_path(program.name))
            for name in self._made.programs.keys() - self._old.keys():
                _quietly(os.unlink, self._pins.program_path(name))
            for name in created:
                _quietly(os.unlink, self._pins.map_path(name))
            raise

    def migrate(self) -> None:
        """Maps change: their content is carried over beside them, then everything moves."""
        pending = self._pins.pending
        migrations: list[Migration] = []
        try:
            for directory in (pending.path, pending.maps, pending.programs):
                os.mkdir(directory, 0o700)
            self._made.pin(pending, self._made.planned(Action.CREATE, Action.RECREATE, Action.MIGRATE))
            for program in self._made.programs.values():
                path = pending.program_path(program.name)
                check(lib.bpf_obj_pin(program.fd, path.encode()), f"pin {path}")
            passed("migrate.created")
            migrations = self._fill()
            self._prepare(self._made.maps)
            passed("migrate.filled")
            os.rename(pending.path, self._pins.next.path)
        except BaseException:
            _quietly(discard, pending)
            raise
        try:
            passed("migrate.committed")
            self._switch()
            passed("migrate.switched")
            for migration in migrations:
                migration.settle()
            passed("migrate.caught_up")
        except BaseException:
            self._switch_back()
            for migration in migrations:
                _quietly(self._bring_back, migration)
            discard(self._pins.next)
            raise
        try:
            promote(self._pins)
        except OSError:
            # Too late to go back: the first pins may be the new ones. So once more.
            recover(self._pins, self._board)

    def _fill(self) -> list[Migration]:
        migrations = []
        for name in self._made.planned(Action.MIGRATE):
            plan = self._made.plans[name]
            assert plan.key is not None and plan.value is not None
            migration = Migration(self._made.pinned[name], self._made.maps[name], plan.key, plan.value)
            started = time.perf_counter()
            filled: Filled = migration.fill()
            self.migrated.append(
                MigratedMap(name, plan.why, filled.entries, filled.caught_up, time.perf_counter() - started)
            )
            migrations.append(migration)
        # The first were filled while nobody looked after them: what came meanwhile.
        for migration in migrations[:-1]:
            migration.catch_up()
        return migrations

    def _switch(self) -> None:
        started = time.perf_counter()
        devices = endpoint_devices(self._made.maps.get(ENDPOINT_DEVICES))
        self.endpoints = self._board.switch(descriptors(self._made.programs), devices)
        self.attach_seconds = time.perf_counter() - started

    def _switch_back(self) -> None:
        devices = endpoint_devices(self._made.pinned.get(ENDPOINT_DEVICES))
        if self._old:
            _quietly(self._board.switch, descriptors(self._old), devices)
        # What there was no program for before has none now.
        new = [
            Place(
                each.ifindex,
                each.hook,
                self._made.programs[each.program].fd,
                pin=self._pins.link(each.device, each.program),
                exclusive=each.device.startswith("fimbria_"),
            )
            for each in self._request.places
            if each.program in self._made.programs and each.program not in self._old
        ]
        if new:
            _quietly(detach, new)

    def _bring_back(self, migration: Migration) -> None:
        """What the new programs wrote, for the old ones that run again."""
        name = migration.source.name
        new, old = shape_of(migration.target.fd), shape_of(migration.source.fd)
        key, value = conversions(name, new, old, lossy=True)
        merge(migration.target, migration.source, key, value, old, overwrite=False)


def _quietly(step: Callable[..., object], *arguments: object) -> None:
    """One of several steps of undoing: what fails does not keep the others from being tried, nor hide why it
    is undone.
    """
    try:
        step(*arguments)
    except (BpfError, OSError):
        pass
