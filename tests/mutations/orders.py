"""The orders that promises depend on, each as the mistake that would break it: old lines, and what would stand there instead.

It knows lines of the agent's source. It must never know how they are tried. A change of the agent that touches these lines has
to change this table as well: an old text that is not there exactly once is an error.
"""

from tests.mutations.rewriting import Order

LOG, STORE = "agent/queue/log.py", "agent/queue/store.py"
CURSOR_FILE, QUARANTINE = "agent/queue/cursor_file.py", "agent/queue/quarantine.py"
COMMITTER, WORKER = "agent/queue/committer.py", "agent/delivery/worker.py"
DISK_BACKLOG = "agent/delivery/disk_backlog.py"

ORDERS = (
    # Data, then ack
    Order(
        "a group is told that it is durable before it is written",
        COMMITTER,
        "committed = await self._run_blocking(partial(self._store.commit, plan, now))",
        """
        group.finish(Committed(plan.refused, None, None))
        committed = await self._run_blocking(partial(self._store.commit, plan, now))
        """,
    ),
    Order(
        "a client is answered before its group is durable",
        "agent/ingest/intake.py",
        "refused = (await group.wait()).refused",
        "refused = None",
    ),
    Order(
        "an append counts before its sync",
        LOG,
        """
        if self._durable:
            active.file.sync()
        self.view = LogView((*older, current._replace(size=current.size + len(data))), seq)
        """,
        """
        self.view = LogView((*older, current._replace(size=current.size + len(data))), seq)
        if self._durable:
            active.file.sync()
        """,
    ),
    Order(
        "an append is synced before it is written",
        LOG,
        """
        active.file.pwrite(data, current.size)
        if self._durable:
            active.file.sync()
        """,
        """
        if self._durable:
            active.file.sync()
        active.file.pwrite(data, current.size)
        """,
    ),
    Order(
        "a failed sync of a segment is tried again",
        LOG,
        """
        if self._durable:
            active.file.sync()
        self.view
        """.replace("self.view", "self.view = LogView((*older, current._replace(size=current.size + len(data))), seq)"),
        """
        if self._durable:
            try:
                active.file.sync()
            except OSError:
                active.file.sync()
        self.view = LogView((*older, current._replace(size=current.size + len(data))), seq)
        """,
    ),
    Order(
        "a segment whose write or sync failed is written again",
        LOG,
        """
        except (OSError, AppendError):  # AppendError: the segment before could not be sealed
            self._give_up()
        """,
        "except (OSError, AppendError):",
    ),
    Order(
        "a write that was cut short passes for a whole one",
        "agent/queue/filesystem.py",
        "while written < len(data):",
        "while written < 0:",
    ),
    # A segment, then what is in it
    Order(
        "a segment begins before the one before it is sealed",
        LOG,
        """
            self.seal()
        return self._begin_segment(now)
        """,
        """
            before = self._active
            began = self._begin_segment(now)
            self._active = before
            self.seal()
            self._active = began
            return began
        return self._begin_segment(now)
        """,
    ),
    # Log, then cursor
    Order(
        "the checkpoint of a commit is written before its append",
        STORE,
        """
        refused, append_error = self._append(plan, now)
        if plan.entries:  # only now: it must know the numbers that were given, and what was refused
            checkpoint_error = self._checkpoint(_outcome(plan, refused, self.log.view.next_seq))
        """,
        """
        if plan.entries:
            end = self.log.view.next_seq + sum(entry.item_count for entry in plan.entries)
            checkpoint_error = self._checkpoint(_outcome(plan, plan.refused, end))
        refused, append_error = self._append(plan, now)
        """,
    ),
    Order(
        "the checkpoint of a commit does not tell what became of its entries",
        STORE,
        """
        if plan.entries:  # only now: it must know the numbers that were given, and what was refused
            checkpoint_error = self._checkpoint(_outcome(plan, refused, self.log.view.next_seq))
        """,
        """
        if plan.entries:
            checkpoint_error = self._checkpoint(plan.checkpoint)
        """,
    ),
    Order(
        "the cursor is synced before the log",
        STORE,
        """
        self.log.sync()
        self._cursor_file.sync()
        """,
        """
        self._cursor_file.sync()
        self.log.sync()
        """,
    ),
    Order(
        "closing makes the cursor durable before the log",
        STORE,
        """
            try:
                self.log.seal()
            finally:
                self._cursor_file.write(self.cursor.state())
                self._cursor_file.sync()
        """,
        """
            try:
                self._cursor_file.write(self.cursor.state())
                self._cursor_file.sync()
            finally:
                self.log.seal()
        """,
    ),
    # Delivered, then durable cursor, then unlink
    Order(
        "segments go before the cursor is durable",
        STORE,
        """
            self._cursor_file.sync()
            self.log.delete_before(position)
        except StorageError as error:
        """,
        """
            self.log.delete_before(position)
            self._cursor_file.sync()
        except StorageError as error:
        """,
    ),
    Order(
        "segments go although the checkpoint could not be written",
        STORE,
        "if deletable and checkpoint_error is None:",
        "if deletable:",
    ),
    Order(
        "segments go before the checkpoint is written",
        STORE,
        """
        if deletable or not plan.entries:
            checkpoint_error = self._checkpoint(plan.checkpoint)
        if deletable and checkpoint_error is None:
            delete_error = self._delete_before(plan.checkpoint.position)
        """,
        """
        if deletable:
            delete_error = self._delete_before(plan.checkpoint.position)
        if deletable or not plan.entries:
            checkpoint_error = self._checkpoint(plan.checkpoint)
        """,
    ),
    Order(
        "room is made in the last segment before the cursor is durable",
        STORE,
        """
        self._cursor_file.sync()
        self.log.truncate_settled()
        """,
        """
        self.log.truncate_settled()
        self._cursor_file.sync()
        """,
    ),
    Order(
        "a deletion is made durable before it happens",
        LOG,
        """
        for old in self.view.segments[:count]:
            self._fs.unlink(self.path(old.first_seq))
        self._fs.sync_directory(self._directory)
        """,
        """
        self._fs.sync_directory(self._directory)
        for old in self.view.segments[:count]:
            self._fs.unlink(self.path(old.first_seq))
        """,
    ),
    Order(
        "segments are forgotten before they are deleted",
        LOG,
        """
        try:
            for old in self.view.segments[:count]:
        """,
        """
        doomed, self.view = self.view.segments[:count], replace(self.view, segments=self.view.segments[count:])
        count = 0
        try:
            for old in doomed:
        """,
    ),
    Order(
        "an event is settled before the API has answered",
        WORKER,
        "verdict = await transport.send(batch)",
        """
        await self._backlog.settle(batch, Outcome.DELIVERED)
        verdict = await transport.send(batch)
        """,
    ),
    Order(
        "an event is settled before its dead letter is durable",
        WORKER,
        """
        await self._backlog.keep_dead_letter(batch, verdict)
        await self._backlog.settle(batch, Outcome.DEAD_LETTERED)
        """,
        """
        await self._backlog.settle(batch, Outcome.DEAD_LETTERED)
        await self._backlog.keep_dead_letter(batch, verdict)
        """,
    ),
    Order(
        "delivery goes on before its checkpoint is written",
        DISK_BACKLOG,
        """
        while (await self._committer.request().wait()).checkpoint_error is not None:  # noqa: ASYNC110 - a retry, not a poll
            await anyio.sleep(STORAGE_RETRY_SECONDS)
        """,
        "self._committer.request()",
    ),
    # The cursor's two slots
    Order(
        "a checkpoint overwrites the newest durable one",
        CURSOR_FILE,
        "self._file.pwrite(slot, (1 - self._durable_slot) * SLOT_BYTES)",
        "self._file.pwrite(slot, self._durable_slot * SLOT_BYTES)",
    ),
    Order(
        "the slots change places at each write, before a sync",
        CURSOR_FILE,
        "self._file.pwrite(slot, (1 - self._durable_slot) * SLOT_BYTES)",
        """
        self._file.pwrite(slot, (1 - self._durable_slot) * SLOT_BYTES)
        self._durable_slot = 1 - self._durable_slot
        """,
    ),
    Order(
        "a failed sync of the cursor is tried again",
        CURSOR_FILE,
        """
        except OSError as error:
            self.close()
            raise self._translate(error) from error
        """,
        """
        except OSError:
            self._file.sync()
        """,
    ),
    Order(
        "a failed write of the cursor passes for one that a sync makes durable",
        CURSOR_FILE,
        "self._dirty = False  # if this fails, the slot holds nothing that a sync could make durable",
        "self._dirty = True",
    ),
    Order(
        "what recovery found in the cursor is synced without being written anew",
        CURSOR_FILE,
        "file.pwrite(slot, self._durable_slot * SLOT_BYTES)",
        "",
    ),
    Order(
        "a new cursor is renamed before its contents are durable",
        CURSOR_FILE,
        """
        file.sync()
        self._fs.rename(fresh, self._path)
        """,
        """
        self._fs.rename(fresh, self._path)
        file.sync()
        """,
    ),
    Order(
        "a new cursor's name is made durable before it has it",
        CURSOR_FILE,
        """
        self._fs.rename(fresh, self._path)
        self._fs.sync_directory(self._path.parent)
        """,
        """
        self._fs.sync_directory(self._path.parent)
        self._fs.rename(fresh, self._path)
        """,
    ),
    Order(
        "a new cursor is written in place",
        CURSOR_FILE,
        'fresh = self._path.with_suffix(".new")',
        "fresh = self._path",
    ),
    # Quarantine
    Order(
        "damaged bytes are cut off before they are in quarantine",
        LOG,
        """
        if end.size < len(data) and not segment.is_torn(data[end.size :]):
            quarantine.keep(last.first_seq, end.size, data[end.size :])
        _mend(fs, path, end.size)
        """,
        """
        _mend(fs, path, end.size)
        if end.size < len(data) and not segment.is_torn(data[end.size :]):
            quarantine.keep(last.first_seq, end.size, data[end.size :])
        """,
    ),
    Order(
        "a copy in quarantine is renamed before it is durable",
        QUARANTINE,
        """
        file.sync()
        self._fs.rename(unfinished, path)
        """,
        """
        self._fs.rename(unfinished, path)
        file.sync()
        """,
    ),
    Order(
        "a copy in quarantine is written in place",
        QUARANTINE,
        'unfinished = path.with_suffix(".new")',
        "unfinished = path",
    ),
)
"""Each of them has to be noticed by a test."""

EXCEPTIONS: dict[str, str] = {}
"""What may survive, by the mutation's name, and why that is no missing test."""
