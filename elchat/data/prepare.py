"""The data stage: sources -> cleaning -> duplicates -> held-out split -> tokens -> shards.

Everything streams: what is in memory is one batch of documents, one waiting document per source
and a digest per kept text.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np

from elchat import paths
from elchat.config import Config, SourceSection
from elchat.data.clean import Cleaner, describe_counts
from elchat.data.cleaning_pool import Cleaned, CleaningPool, process_count
from elchat.data.conversations import (
    Fitter,
    Render,
    answer_bytes,
    conversation_text,
    normalise_messages,
)
from elchat.data.dedup import Deduplicator
from elchat.data.encoding import DocumentEncoder, EncodeArrays, frame
from elchat.data.heldout import HeldOutSplitter, Item, cut_tail
from elchat.data.shards import FORMAT_VERSION, MANIFEST, ShardSet, ShardWriter
from elchat.data.sources import Conversation, Document, SourceReader, describe
from elchat.data.spool import Piece, Spool
from elchat.data.supervision import nothing_to_learn, require_mixed
from elchat.errors import DataError, ElchatError
from elchat.files import fsync_dir, require_free_space, sha256_json, write_json

Stage = Literal["cpt", "sft"]
Progress = Callable[[int, int, str], None]
Executor = Callable[[Spool, list[Piece]], None]

CODE_VERSION = 2  # raise it whenever the same input would give other tokens
BATCH_CHARS = 1 << 20
BATCH_DOCUMENTS = 512
MIN_TAIL_BYTES = 1000  # less than this is not worth taking from a lone document
SHARD_BYTES_PER_TEXT_BYTE = 2  # a token takes 4 bytes and spells 2.7 or more
TEXT_BYTES_PER_PACKED_BYTE = 3  # gzip and parquet hold about three times their size


class PreparationStopped(ElchatError):
    """`should_stop` asked to stop; nothing half-made is left behind."""


def prepare(
    config: Config,
    stage: Stage,
    *,
    encode_arrays: EncodeArrays,
    tokenizer_sha256: str,
    prefix_ids: Sequence[int] = (),
    eos_id: int | None = None,
    render: Render | None = None,
    render_fingerprint: str = "",
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    processes: int | None = None,
    executor: Executor | None = None,
) -> ShardSet:
    """Tokenise a stage's data once; the same data, settings and tokenizer open the same folder.

    A document's ids are `prefix_ids + tokens + [eos_id]`; a conversation's are the renderer's,
    unchanged.

    Args:
        config: validated configuration; its `data` section is read, and for sft
            `training.sft.context_tokens`.
        stage: "cpt" (documents) or "sft" (conversations).
        encode_arrays: texts to joined ids and n + 1 offsets, without special tokens. Not needed
            to render.
        tokenizer_sha256: identity of the tokenizer.
        prefix_ids: put before each document.
        eos_id: put after each document, unless None.
        render: messages to ids and targets (sft only).
        render_fingerprint: identity of the chat format.
        progress: called with stored bytes read, stored bytes in all, and a Spanish line.
        should_stop: polled between documents.
        processes: that clean documents; by default one per core as far as there is text for
            them. The shards are the same whatever the number.
        executor: cleans pieces of the texts elsewhere before they are read here (see
            `datatrove_jobs`); whatever it leaves undone is cleaned here.

    Raises:
        DataError: unusable input, nothing left after cleaning, nothing supervised.
        NetworkError: the hub does not answer.
        DiskError: no room for the shards.
        PreparationStopped: `should_stop` said so.
    """
    if stage == "sft" and render is None:
        raise ValueError("sft needs a renderer")
    job = _Job(
        config, stage, encode_arrays, list(prefix_ids), eos_id, render, progress, should_stop
    )
    job.report("buscando los textos")
    readers = [(role, i, SourceReader(s, stage)) for role, i, s in job.plan()]
    key = job.key(readers, tokenizer_sha256, render_fingerprint)
    final = paths.shards_dir() / key[:32]
    weights = [source.weight for source in getattr(config.data, stage)]
    with contextlib.suppress(DataError):
        if final.exists():
            return ShardSet.open(final, weights=weights)
    job.total_bytes = sum(_expected_bytes(reader) for _, _, reader in readers)
    needed = sum(_shard_bytes(reader) for _, _, reader in readers)
    job.open_pool(process_count(processes, needed // SHARD_BYTES_PER_TEXT_BYTE))
    require_free_space(final, needed, "los datos preparados")
    _sweep_temporaries(final)
    if stage == "cpt" and (executor is not None or paths.spool_dir().exists()):
        job.plan_pieces(readers)
    if executor is not None:
        executor(job.spool, [piece for pieces in job.pieces.values() for piece in pieces])
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        job.run(readers, temporary, key)
        _publish(temporary, final)
    finally:
        job.close()
        shutil.rmtree(temporary, ignore_errors=True)
    return ShardSet.open(final, weights=weights)


@dataclass
class _Tally:
    """What happened to one configured source."""

    origin: str
    documents_read: int = 0
    documents_kept: int = 0
    documents_held_out: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    adjusted: Counter[str] = field(default_factory=Counter)


@dataclass
class _Ready:
    """A document on its way to a writer."""

    writer: ShardWriter
    item: Item[Any]


class _Job:
    """One preparation: sources in, a complete folder out."""

    def __init__(
        self,
        config: Config,
        stage: Stage,
        encode_arrays: EncodeArrays,
        prefix_ids: list[int],
        eos_id: int | None,
        render: Render | None,
        progress: Progress | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self.config, self.stage = config, stage
        self.prefix_ids, self.eos_id = prefix_ids, eos_id
        self.encode = DocumentEncoder(encode_arrays) if stage == "cpt" else None
        self.render, self.progress, self.should_stop = render, progress, should_stop
        self.total_bytes = self.done_bytes = 0
        similarity = config.data.cleaning.near_duplicate_similarity if stage == "cpt" else 0.0
        self.duplicates = Deduplicator(similarity)
        self.spool = Spool(config.data.cleaning, self.duplicates.finds_near)
        self.identities: dict[tuple[str, int], list[str]] = {}
        self.pieces: dict[SourceReader, list[Piece]] = {}
        self.writers: dict[str, ShardWriter] = {}
        self.entries: dict[str, dict[str, Any]] = {}
        self.tallies: list[_Tally] = []
        self.pending: list[_Ready] = []
        self.pending_chars = 0
        self.held_bytes: Counter[str] = Counter()
        self.pool = ThreadPoolExecutor(1, "elchat-encoding")
        self.open_pool(1)
        self.encoding: tuple[list[_Ready], Future[tuple[np.ndarray, np.ndarray]]] | None = None

    def open_pool(self, processes: int) -> None:
        """Clean with so many processes; none starts before the first document."""
        self.cleaning = CleaningPool(
            self.config.data.cleaning,
            with_sketch=self.duplicates.finds_near,
            processes=processes if self.stage == "cpt" else 1,
        )

    def plan(self) -> Iterator[tuple[str, int, SourceSection]]:
        """Held-out-only sources first, so that training never keeps a copy of one."""
        if self.stage == "cpt":
            for i, source in enumerate(self.config.data.held_out.english):
                yield "heldout", i, source
        for i, source in enumerate(getattr(self.config.data, self.stage)):
            yield "train", i, source

    def key(
        self, readers: list[tuple[str, int, SourceReader]], tokenizer: str, template: str
    ) -> str:
        """Content address of the result: everything that changes a token, nothing else."""
        ignored = {"path", "weight"}
        data = self.config.data
        is_cpt = self.stage == "cpt"
        inputs = []
        for role, index, reader in readers:
            self._check_stop()
            identities = [file.identity() for file in reader.files]
            self.identities[role, index] = identities
            settings = {k: v for k, v in reader.source.model_dump().items() if k not in ignored}
            names = [Path(file.name).name for file in reader.files]
            files = [list(pair) for pair in zip(names, identities, strict=True)]
            inputs.append({"role": role, "settings": settings, "files": files})
        return sha256_json(
            {
                "code": [CODE_VERSION, FORMAT_VERSION],
                "stage": self.stage,
                "inputs": inputs,
                "cleaning": data.cleaning.model_dump(
                    include=None if is_cpt else {"min_language_probability"}
                ),
                "held_out": [data.held_out.share, data.held_out.max_bytes],
                "tokenizer": tokenizer,
                "around": [self.prefix_ids, self.eos_id] if is_cpt else None,
                "template": None if is_cpt else template,
                "context": None if is_cpt else self.config.training.sft.context_tokens,
            }
        )

    def plan_pieces(self, readers: list[tuple[str, int, SourceReader]]) -> None:
        """Find out which pieces the training texts are made of."""
        for role, index, reader in readers:
            if role == "train":
                self.pieces[reader] = self.spool.pieces(reader, self.identities[role, index])

    def run(self, readers: list[tuple[str, int, SourceReader]], folder: Path, key: str) -> None:
        """Write every split and the manifest into `folder`."""
        folder.mkdir(parents=True)
        for role, index, reader in readers:
            tally = _Tally(describe(reader.source).strip("«»"))
            self.tallies.append(tally)
            before = self.done_bytes
            self._run_source(folder, role, index, reader, tally)
            self.done_bytes = before + _expected_bytes(reader)
        self.report("cerrando los archivos")
        splits = []
        for name, writer in self.writers.items():
            if writer.documents:
                splits.append({**self.entries[name], **writer.finish()})
            else:
                writer.close()
                shutil.rmtree(writer.folder)
        manifest = {
            "format_version": FORMAT_VERSION,
            "key": key,
            "stage": self.stage,
            "splits": splits,
            "sources": [_tally_json(tally) for tally in self.tallies],
        }
        write_json(folder / MANIFEST, manifest)

    def close(self) -> None:
        """Release the processes, the thread and the files."""
        self.cleaning.close()
        self.pool.shutdown(wait=True)
        for writer in self.writers.values():
            writer.close()

    def report(self, message: str) -> None:
        """Tell the caller how far we are."""
        if self.progress is not None:
            self.progress(min(self.done_bytes, self.total_bytes), self.total_bytes, message)

    def _run_source(
        self, folder: Path, role: str, index: int, reader: SourceReader, tally: _Tally
    ) -> None:
        source, base = reader.source, self.done_bytes
        route = _Route(self, folder, role, index, source, tally)
        for item in self._items(reader, tally):
            route.push(item)
            if len(self.pending) >= BATCH_DOCUMENTS or self.pending_chars >= BATCH_CHARS:
                self.flush(tally)
                self.done_bytes = base + min(reader.bytes_read, _expected_bytes(reader))
                self.report(f"{tally.origin}: {tally.documents_read} documentos leídos")
            if route.is_full:
                break
        route.finish()
        self.flush(tally, last=True)
        _require_something(route.train, tally, is_chat=self.stage == "sft")

    def _items(self, reader: SourceReader, tally: _Tally) -> Iterator[Item[Any]]:
        """Cleaned, deduplicated items of one source."""
        return self._documents(reader, tally) if self.stage == "cpt" else self._chats(reader, tally)

    def _documents(self, reader: SourceReader, tally: _Tally) -> Iterator[Item[Any]]:
        dropped_lines, pieces = 0, self.pieces.get(reader, [])

        def clean(documents: Iterator[Document]) -> Iterator[tuple[Document, Cleaned]]:
            return self.cleaning.clean(documents, reader.source.language)

        with contextlib.closing(self.spool.read(reader, pieces, clean)) as stream:
            for licence, cleaned in self._watched(stream):
                tally.documents_read += 1
                tally.removed.update(cleaned.counts)
                if cleaned.text is None:
                    continue
                dropped_lines += cleaned.boilerplate_lines
                reason = self.duplicates.judge(cleaned.digest, cleaned.sketch)
                if reason is None:
                    yield Item(licence, cleaned.text, cleaned.n_bytes)
                else:
                    tally.removed[reason] += 1
        if dropped_lines:
            tally.adjusted["lineas_de_relleno_quitadas"] += dropped_lines

    def _chats(self, reader: SourceReader, tally: _Tally) -> Iterator[Item[Any]]:
        cleaner = Cleaner(self.config.data.cleaning, reader.source.language)
        for raw in self._watched(reader):
            tally.documents_read += 1
            messages = normalise_messages(raw.messages)
            text = conversation_text(messages)
            reason = "idioma" if cleaner.is_foreign(text) else self.duplicates.reason(text)
            if reason is not None:
                tally.removed[reason] += 1
                continue
            payload = Conversation(messages, raw.language, raw.licence, raw.origin)
            yield Item(payload, text, len(text.encode("utf-8")))

    def _watched(self, stream: Iterable[Any]) -> Iterator[Any]:
        """What a stream gives, looking now and then whether to stop."""
        for number, item in enumerate(stream):
            if number % 64 == 0:
                self._check_stop()
            yield item

    def splitter(self, role: str, source: SourceSection) -> HeldOutSplitter[Any]:
        """This source's part of its language's held-out text."""
        held_out = self.config.data.held_out
        if role == "heldout" or not self.is_split(source):
            return HeldOutSplitter(0.0, 0)
        same = [s for s in getattr(self.config.data, self.stage) if s.language == source.language]
        return HeldOutSplitter(held_out.share, max(1, held_out.max_bytes // len(same)))

    def is_split(self, source: SourceSection) -> bool:
        """Whether a training source gives held-out documents."""
        if self.stage == "cpt" and source.language == "en":
            return not self.config.data.held_out.english
        return source.language in ("es", "en")

    def writer(
        self, folder: Path, name: str, split: str, source: SourceSection, index: int | None
    ) -> ShardWriter:
        if name not in self.writers:
            self.writers[name] = ShardWriter(folder / name, with_targets=self.stage == "sft")
            self.entries[name] = {
                "name": name,
                "split": split,
                "language": split.removeprefix("heldout_") if index is None else source.language,
                "licence": source.licence,
                "weight": source.weight,
                "config_index": index,
            }
        return self.writers[name]

    def queue(self, writer: ShardWriter, item: Item[Any]) -> None:
        """Leave a document for the next flush."""
        self.pending.append(_Ready(writer, item))
        self.pending_chars += len(item.text)

    def flush(self, tally: _Tally, *, last: bool = False) -> None:
        """Send what is queued to be encoded, and write the batch sent before it.

        Encoding runs on the tokenizer's own threads while the next batch is being cleaned.
        """
        pending, self.pending, self.pending_chars = self.pending, [], 0
        self._check_stop()
        if self.stage == "sft":
            self._write_conversations(pending, tally)
            return
        self._write_encoded()
        if pending:
            assert self.encode is not None
            texts = [ready.item.text for ready in pending]
            self.encoding = (pending, self.pool.submit(self.encode, texts))
        if last:
            self._write_encoded()

    def _write_encoded(self) -> None:
        """Write the encoded batch, in runs of documents that go to the same folder."""
        if self.encoding is None:
            return
        (pending, future), self.encoding = self.encoding, None
        ids, offsets = future.result()
        start = 0
        for writer, run in groupby(pending, key=lambda ready: ready.writer):
            items = [ready.item for ready in run]
            ends = offsets[start : start + len(items) + 1]
            writer.append_arrays(
                *frame(ids[ends[0] : ends[-1]], np.diff(ends), self.prefix_ids, self.eos_id),
                [item.n_bytes for item in items],
                [item.payload for item in items],
            )
            start += len(items)

    def _write_conversations(self, pending: list[_Ready], tally: _Tally) -> None:
        assert self.render is not None
        fitter = Fitter(self.render, self.config.training.sft.context_tokens + 1, tally.adjusted)
        for ready in pending:
            conversation: Conversation = ready.item.payload
            for messages, rendered in fitter.fit(conversation.messages):
                ready.writer.append(
                    rendered.ids, answer_bytes(messages), conversation.licence, rendered.is_target
                )

    def _check_stop(self) -> None:
        if self.should_stop is not None and self.should_stop():
            raise PreparationStopped(
                "La preparación de los datos se detuvo; no queda nada a medias.",
                hint="Continúa con elchat resume",
            )


class _Route:
    """Where one source's documents go: its training folder, its language's held-out folder."""

    def __init__(
        self, job: _Job, folder: Path, role: str, index: int, source: SourceSection, tally: _Tally
    ) -> None:
        self.job, self.tally, self.role = job, tally, role
        self.splitter = job.splitter(role, source)
        self.language = "en" if role == "heldout" else source.language
        self.train: ShardWriter | None = None
        self.held: ShardWriter | None = None
        if role == "train":
            self.train = job.writer(folder, f"{index:02d}-{_slug(source)}", "train", source, index)
        if role == "heldout" or job.is_split(source):
            name = f"heldout_{self.language}"
            self.held = job.writer(folder, name, name, source, None)

    @property
    def is_full(self) -> bool:
        """Whether reading on is useless: a held-out-only source that reached the cap."""
        return self.role == "heldout" and self._room <= 0

    def push(self, item: Item[Any]) -> None:
        """Send a document to its folder; the splitter may keep one waiting."""
        if self.role == "heldout":
            self._measure(item)
            return
        for place, one in self.splitter.push(item):
            if place == "heldout":
                self._hold(one)
            else:
                self._train(one)

    def finish(self) -> None:
        """Place the waiting document; one too long to measure whole also trains, by its head."""
        item, is_only = self.splitter.finish()
        if item is None:
            return
        cap = min(self.splitter.max_bytes, max(0, self._room))
        if not is_only and (item.n_bytes <= cap or self.job.stage == "sft"):
            self._hold(item)
            return
        wanted = min(cap, int(item.n_bytes * self.splitter.share)) if is_only else cap
        if self.job.stage == "sft" or (is_only and wanted < MIN_TAIL_BYTES):
            self._train(item)
            return
        head, tail = cut_tail(item.text, wanted)
        self.tally.adjusted["documentos_partidos_para_medir"] += 1
        for part, send in ((tail, self._hold), (head, self._train)):
            if part:
                send(_retext(item, part))

    @property
    def _room(self) -> int:
        return self.job.config.data.held_out.max_bytes - self.job.held_bytes[self.language]

    def _measure(self, item: Item[Any]) -> None:
        """Hold out a document never trained on, cut to what the cap leaves."""
        if item.n_bytes > self._room:
            head = item.text.encode("utf-8")[: self._room].decode("utf-8", "ignore")
            space = max(head.rfind(" "), head.rfind("\n"))
            text = (head[:space] if space > len(head) // 2 else head).strip()
            left = item.n_bytes - len(text.encode("utf-8"))
            self.tally.adjusted["bytes_sobre_el_tope"] += left
            self.job.held_bytes[self.language] += left  # full: the rest is not worth reading
            item = _retext(item, text)
        if item.text:
            self._hold(item)

    def _hold(self, item: Item[Any]) -> None:
        assert self.held is not None
        self.job.held_bytes[self.language] += item.n_bytes
        self.tally.documents_held_out += 1
        self.job.queue(self.held, item)

    def _train(self, item: Item[Any]) -> None:
        assert self.train is not None
        self.tally.documents_kept += 1
        self.job.queue(self.train, item)


def _require_something(train: ShardWriter | None, tally: _Tally, *, is_chat: bool) -> None:
    if tally.documents_kept + tally.documents_held_out == 0:
        raise DataError(
            f"De la fuente «{tally.origin}» no queda nada tras limpiar: "
            f"{tally.documents_read} leídos; descartados: {describe_counts(tally.removed)}. "
            "Revisa el texto o afloja data.cleaning."
        )
    if train is not None and train.documents == 0:
        raise DataError(
            f"De la fuente «{tally.origin}» todo se apartó para medir y no queda nada que "
            "entrenar: baja data.held_out.share."
        )
    if train is None:
        return
    where = f"La fuente «{tally.origin}»"
    if is_chat:
        require_mixed(where, train.targets, train.tokens, train.documents)
    elif train.targets == 0:
        raise nothing_to_learn(where)


def _retext(item: Item[Any], text: str) -> Item[Any]:
    return item if text == item.text else Item(item.payload, text, len(text.encode("utf-8")))


def _expected_bytes(reader: SourceReader) -> int:
    cap = reader.source.max_mb
    return reader.total_bytes if cap is None else min(reader.total_bytes, int(cap * 1_000_000))


def _shard_bytes(reader: SourceReader) -> int:
    text = sum(
        file.size_bytes
        * (TEXT_BYTES_PER_PACKED_BYTE if file.is_gzip or file.format == "parquet" else 1)
        for file in reader.files
    )
    cap = reader.source.max_mb
    return SHARD_BYTES_PER_TEXT_BYTE * (text if cap is None else min(text, int(cap * 1e6)))


def _slug(source: SourceSection) -> str:
    name = source.hub or Path(source.path or "").name
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "fuente"


def _tally_json(tally: _Tally) -> dict[str, Any]:
    return {
        "origin": tally.origin,
        "documents_read": tally.documents_read,
        "documents_kept": tally.documents_kept,
        "documents_held_out": tally.documents_held_out,
        "removed": dict(tally.removed.most_common()),
        "adjusted": dict(tally.adjusted.most_common()),
    }


def _sweep_temporaries(final: Path) -> None:
    """Remove what a killed process left half-made for this very key."""
    from elchat.runs import is_process_alive

    for path in final.parent.glob(f".{final.name}.*.tmp"):
        pid = path.name.split(".")[-2]
        if pid.isdigit() and (int(pid) == os.getpid() or not is_process_alive(int(pid), None)):
            shutil.rmtree(path, ignore_errors=True)


def _publish(temporary: Path, final: Path) -> None:
    if final.exists():
        with contextlib.suppress(DataError):
            ShardSet.open(final)
            return  # another process was faster
        shutil.rmtree(final)
    os.replace(temporary, final)
    fsync_dir(final.parent)
