"""`kvist verify`: prove the exactness contract on a model; exit status 1 if a single bit differs."""

from __future__ import annotations

import json as json_module
from typing import Annotated

import typer

from kvist.cli import flags


def verify(
    model: flags.Model,
    quick: Annotated[
        bool, typer.Option("--quick", help="Shorter prompts and answers: about a minute on two cores.")
    ] = False,
    kv_cache_dtype: flags.KvCacheDtype = None,
    kv_cache_skip_layers: flags.KvCacheSkipLayers = None,
    policy: flags.Policy = None,
    weights: flags.Weights = None,
    page_size: flags.PageSize = None,
    threads: flags.Threads = None,
    speculative_config: flags.Speculative = None,
    json: flags.Json = False,
) -> None:
    """Run the same tokens in different ways and count the bits of the logits that differ. The contract says: none."""
    from kvist.assemble import load_draft
    from kvist.cli.terminal import Activity
    from kvist.config import EngineConfig, usable_cores
    from kvist.kernels.cpu.backend import CpuBackend
    from kvist.models.hub import resolve
    from kvist.models.load import load_model
    from kvist.verify.verify import CODECS, Row
    from kvist.verify.verify import verify as rows_of

    config = EngineConfig.from_options(flags.engine_options(
        kv_cache_dtype=kv_cache_dtype, kv_cache_skip_layers=kv_cache_skip_layers, policy=policy, weights=weights,
        page_size=page_size, threads=threads, speculative_config=speculative_config,
    ))  # fmt: skip
    codecs = CODECS if config.kv_cache_dtype == "auto" else (config.kv_cache_dtype,)
    path, wide = resolve(model), 2 + max(map(len, codecs))
    rows: list[Row] = []
    with Activity("loading the model") as activity:
        backend = CpuBackend(
            config.threads or usable_cores(), lambda: activity.report("compiling kernels (once per machine)", 0, 0)
        )
        one_thread = CpuBackend(1)
        loaded = load_model(
            path, backend, config.weights, lambda done, total: activity.report("loading weights", done, total)
        )
        draft = load_draft(config, backend, activity.report)
    with Activity("verifying") as activity:
        for row in rows_of(
            loaded, backend, one_thread, config, quick=quick, codecs=codecs, draft=draft,
            starting=lambda name, codec: activity.report(f"{codec}: {name}", 0, 0),
        ):  # fmt: skip
            if not rows and not json:
                activity.line(f"{'scenario':<42}{'codec':<{wide}}{'logits':>13}{'differing bits':>16}{'seconds':>10}")
            rows.append(row)
            if not json:
                found = f"{row.logits:>13,}{row.differing_bits:>16,}{row.seconds:>10.2f}"
                activity.line(f"{row.name:<42}{row.codec:<{wide}}{found}")
    bits = sum(row.differing_bits for row in rows)
    if json:
        print(json_module.dumps({"ok": not bits, "model": model, "scenarios": [row.as_json() for row in rows]}))
    else:
        _say(not bits, sum(row.logits for row in rows), bits)
    backend.close()
    one_thread.close()
    if bits:
        raise typer.Exit(1)


def _say(ok: bool, logits: int, bits: int) -> None:
    verdict = typer.style("ok", fg="green") if ok else typer.style("FAILED", fg="red", bold=True)
    typer.echo(f"{verdict}: {logits:,} logits compared, {bits:,} bits differ")
