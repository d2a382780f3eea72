"""The orders that promises depend on, each as the mistake that would break it: old lines, and what would stand there instead.

A change of the agent that touches these lines has
to change this table as well: an old text that is not there exactly once is an error.
"""

from tests.mutations.rewriting import Order

LOG, WRITER = "agent/queue/log.py", "agent/queue/writer.py"
CURSOR_FILE, ATOMIC = "agent/queue/cursor_file.py", "agent/queue/atomic.py"
COMMITTER, WORKER = "agent/queue/committer.py", "agent/delivery/worker.py"
DISK_BACKLOG = "agent/delivery/disk_backlog.py"

ORDERS = (
    # Data, then ack
    Order(
        "a group is told that it is durable before it is written",
        COMMITTER,
        "committed = await self._writer.run(partial(Writer.commit, plan=plan, now=now))",
        """
        group.finish(Committed(self._store.view))
        committed = await self._writer.run(partial(Writer.commit, plan=plan, now=now))
        """,
    ),
    Order(
        "a client is answered before its group is durable",
        "agent/ingest/intake.py",
        "refused = (await oldest.submission.wait()).refused",
        "refused = None",
    ),
    Order(
        "an append counts before its sync",
        LOG,
        """
        if self._durable:
            file.sync()
        self.view = LogView((*older, Segment(first_seq, size + len(data), created_at)), next_seq)
        """,
        """
        self.view = LogView((*older, Segment(first_seq, size + len(data), created_at)), next_seq)
        if self._durable:
            file.sync()
        """,
    ),
    Order(
        "an append is synced before it is written",
        LOG,
        """
        file.pwrite(data, size)
        if self._durable:
            file.sync()
        """,
        """
        if self._durable:
            file.sync()
        file.pwrite(data, size)
        """,
    ),
    Order(
        "a failed sync of a segment is tried again",
        LOG,
        """
        if self._durable:
            file.sync()
        self.view = LogView((*older, Segment(first_seq, size + len(data), created_at)), next_seq)
        """,
        """
        if self._durable:
            try:
                file.sync()
            except OSError:
                file.sync()
        self.view = LogView((*older, Segment(first_seq, size + len(data), created_at)), next_seq)
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
        WRITER,
        """
        refused, append_error = self._append(plan, now)
        if plan.entries:  # only now: it must know the numbers that were given, and what was refused
            checkpoint_error = self._write_checkpoint(_checkpoint_after(plan, refused, self._log.view))
        """,
        """
        if plan.entries:
            view = LogView(self._log.view.segments, self._log.view.next_seq + plan.new + plan.retried)
            checkpoint_error = self._write_checkpoint(_checkpoint_after(plan, None, view))
        refused, append_error = self._append(plan, now)
        """,
    ),
    Order(
        "the checkpoint of a commit does not tell what became of its entries",
        WRITER,
        """
        if plan.entries:  # only now: it must know the numbers that were given, and what was refused
            checkpoint_error = self._write_checkpoint(_checkpoint_after(plan, refused, self._log.view))
        """,
        """
        if plan.entries:
            checkpoint_error = self._write_checkpoint(plan.checkpoint)
        """,
    ),
    Order(
        "the cursor is synced before the log",
        WRITER,
        """
        self._log.sync()
        self._cursor_file.sync()
        """,
        """
        self._cursor_file.sync()
        self._log.sync()
        """,
    ),
    Order(
        "closing makes the cursor durable before the log",
        WRITER,
        """
            try:
                self._log.seal()
            finally:
                self._cursor_file.write(plan.checkpoint)
                self._cursor_file.sync()
        """,
        """
            try:
                self._cursor_file.write(plan.checkpoint)
                self._cursor_file.sync()
            finally:
                self._log.seal()
        """,
    ),
    # What was not delivered is noted, then the checkpoint that settles it
    Order(
        "what was not delivered is noted after the checkpoint that settles it",
        WRITER,
        """
        undelivered_error = self._note_undelivered(plan)
        keep = plan.keep_segments and self._shortage() is None
        deletable = 0 if keep else segment.deletable(self._log.view.segments, checkpoint.position)
        if deletable or not plan.entries:
            checkpoint_error = self._write_checkpoint(checkpoint)
        """,
        """
        keep = plan.keep_segments and self._shortage() is None
        deletable = 0 if keep else segment.deletable(self._log.view.segments, checkpoint.position)
        if deletable or not plan.entries:
            checkpoint_error = self._write_checkpoint(checkpoint)
        undelivered_error = self._note_undelivered(plan)
        """,
    ),
    # Delivered, then durable cursor, then unlink
    Order(
        "segments go before the cursor is durable",
        WRITER,
        """
            self._cursor_file.sync()
            self._log.delete_before(position)
        except StorageError as error:
        """,
        """
            self._log.delete_before(position)
            self._cursor_file.sync()
        except StorageError as error:
        """,
    ),
    Order(
        "segments go although the checkpoint could not be written",
        WRITER,
        "if deletable and checkpoint_error is None:",
        "if deletable:",
    ),
    Order(
        "segments go before the checkpoint is written",
        WRITER,
        """
        if deletable or not plan.entries:
            checkpoint_error = self._write_checkpoint(checkpoint)
        if deletable and checkpoint_error is None:
            delete_error = self._delete_before(checkpoint.position)
        """,
        """
        if deletable:
            delete_error = self._delete_before(checkpoint.position)
        if deletable or not plan.entries:
            checkpoint_error = self._write_checkpoint(checkpoint)
        """,
    ),
    Order(
        "room is made in the last segment before the cursor is durable",
        WRITER,
        """
        self._cursor_file.sync()
        self._log.truncate_settled()
        """,
        """
        self._log.truncate_settled()
        self._cursor_file.sync()
        """,
    ),
    Order(
        "a deletion is made durable before it happens",
        LOG,
        """
        for old in self.view.segments[:count]:
            self._dispose(self.path(old.first_seq), old)
        self._fs.sync_directory(self._directory)
        """,
        """
        self._fs.sync_directory(self._directory)
        for old in self.view.segments[:count]:
            self._dispose(self.path(old.first_seq), old)
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
    # A file that is replaced: a new cursor, a copy in quarantine, what a spool says of itself
    Order(
        "a new file is renamed before its contents are durable",
        ATOMIC,
        """
        self.file.sync()
        self._fs.rename(self._temporary, self._target)
        """,
        """
        self._fs.rename(self._temporary, self._target)
        self.file.sync()
        """,
    ),
    Order(
        "a new file's name is made durable before it has it",
        ATOMIC,
        """
        self._fs.rename(self._temporary, self._target)
        self._fs.sync_directory(self._target.parent)
        """,
        """
        self._fs.sync_directory(self._target.parent)
        self._fs.rename(self._temporary, self._target)
        """,
    ),
    Order(
        "a new file is written in place",
        ATOMIC,
        "self._temporary = temporary or target.with_name(target.name + UNFINISHED)",
        "self._temporary = target",
    ),
    # Quarantine
    Order(
        "damaged bytes are cut off before they are in quarantine",
        LOG,
        """
        if not segment.is_torn(rest):
            quarantine.keep(DamagedBytes(last.first_seq, end.size, rest))
        _mend(fs, directory / segment.name(last.first_seq), end.size)
        """,
        """
        _mend(fs, directory / segment.name(last.first_seq), end.size)
        if not segment.is_torn(rest):
            quarantine.keep(DamagedBytes(last.first_seq, end.size, rest))
        """,
    ),
)
"""Each of them has to be noticed by a test."""

EXCEPTIONS: dict[str, str] = {}
"""What may survive, by the mutation's name, and why that is no missing test."""
