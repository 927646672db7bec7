"""
The log lines that users see, in English and Chinese under the same ids, and the codes of those that want a look.

Lines go to the logger "semid_dataset", which carries a NullHandler and nothing else: the program
decides where they end. Degrading is announced twice, as a log line and by `warnings.warn`, because
a NullHandler hides log lines from programs that configure no logging. A warning names the line of the caller's program,
the first that is neither ours nor the standard library's.

A line of level WARNING or ERROR ends with its code, such as [SEMID-W012], in either language, and its record has it as
`code`; docs/troubleshooting.md has an entry for each. Three lines are the original's, to the last character in Chinese,
and have it in the record alone there. No line of these levels is logged but through here.
"""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from semid_dataset.errors import SemanticIdWarning

__all__ = ["CODES", "LINES", "coded", "degrade", "logger", "said", "speak", "tell", "text", "warn"]

logger = logging.getLogger("semid_dataset")
logger.addHandler(logging.NullHandler())

HOME, LIBRARY = (f"{Path(file).parent}{os.sep}" for file in (__file__, os.__file__))

LINES: dict[str, tuple[str, str]] = {
    # id: (English, Chinese). Chinese wording of the first blocks is fixed: monitoring greps for it.
    "not_found": (
        "No semantic_id feature found, trying to generate it...",
        "未找到semantic_id特征，尝试自动生成...",
    ),
    "generating": ("Generating semantic_id features...", "正在生成semantic_id特征..."),
    "loading_features": (
        "Loading multi-modal features for RQ-VAE training...",
        "加载多模态特征用于RQ-VAE训练...",
    ),
    "loaded_feature": ("Loaded #{feature} mm_emb", "Loaded #{feature} mm_emb"),
    "features": (
        "Got multi-modal features of {items} items, dimension: {dim}",
        "获取了 {items} 个物品的多模态特征，维度: {dim}",
    ),
    "training": ("Training the RQ-VAE model...", "开始训练RQ-VAE模型..."),
    "epoch": ("Epoch {epoch}/{epochs}: Loss={loss:.4f}", "Epoch {epoch}/{epochs}: Loss={loss:.4f}"),
    "trained": ("RQ-VAE training finished!", "RQ-VAE训练完成！"),
    "encoding": ("Generating semantic_id...", "生成semantic_id..."),
    "encoded": ("Generated the semantic_id of {items} items", "为 {items} 个物品生成了semantic_id"),
    "saving": ("Saving semantic_id to {path}", "保存semantic_id到 {path}"),
    "saved": ("semantic_id generated and saved!", "semantic_id生成和保存完成！"),
    "generated": (
        "Successfully generated semantic_id features of {items} items",
        "成功生成 {items} 个物品的semantic_id特征",
    ),
    "loaded": (
        "Successfully loaded semantic_id features of {items} items",
        "成功加载 {items} 个物品的semantic_id特征",
    ),
    "no_folder": (
        "Warning: no multi-modal feature folder {path}",
        "警告: 未找到多模态特征目录 {path}",
    ),
    "no_features": (
        "No multi-modal features available, skipping semantic_id generation",
        "无法获取多模态特征，跳过semantic_id生成",
    ),
    "defaults": (
        "semantic_id generation failed, default values will be used",
        "semantic_id生成失败，将使用默认值",
    ),
    "coverage": (
        "Semantic ID statistics:\n  candidates: {total}\n  with a semantic_id: {known}\n  coverage: {share:.2%}",
        "Semantic ID使用统计:\n  总候选物品数: {total}\n  使用semantic_id的物品数: {known}\n  覆盖率: {share:.2%}",
    ),
    # Beyond the original's lines.
    "extended": (
        "Extended the table by {new} new items to {items}; known items keep their IDs (generation {generation})",
        "semantic_id表新增 {new} 个物品，共 {items} 个；已有物品的ID不变（第 {generation} 代）",
    ),
    "retrained": (
        "Retrained: {moved} of {items} items moved; lineage {lineage} stays for whoever names it as parent",
        "重新训练完成: {items} 个物品中有 {moved} 个ID改变；谱系 {lineage} 仍可作为 parent 使用",
    ),
    "feature_missing": (
        "Feature {feature} is missing in {path}; going on without it",
        "{path} 中缺少特征 {feature}，将使用其余特征",
    ),
    "feature_unreadable": (
        "Feature {feature} cannot be read ({error}); going on without it",
        "特征 {feature} 无法读取（{error}），将使用其余特征",
    ),
    "bad_rows": (
        "Skipped {bad} of {rows} rows of feature {feature}; the first: {first}",
        "特征 {feature} 跳过了 {bad}/{rows} 行；第一处: {first}",
    ),
    "ids_converted": (
        "{where}: ids are whole numbers in another spelling; they are read as numbers: {example}",
        "{where}: 物品id是另一种写法的整数，已按整数读取: {example}",
    ),
    "ids_untidy": (
        "{where}: blanks stand around ids and are kept as parts of them: {example}; they are found with them only",
        "{where}: 物品id两端有空白字符，已原样保留: {example}；只有带上空白才能查到",
    ),
    "index_as_items": (
        "{path} has no column named as items are; the index that pandas wrote without a name is taken for the items",
        "{path} 中没有物品列；使用 pandas 写入的无名索引作为物品id",
    ),
    "files_passed_over": (
        "{path}: files that are no parts of the embeddings were not read: {names}",
        "{path}: 以下文件不属于向量数据，未读取: {names}",
    ),
    "beyond_bulk": (
        "{count} of {rows} vectors lie far beyond all others, up to {times:.3g} times as far out (items {named}): they "
        "took no part in the training and get the IDs nearest to them. Look where they come from.",
        "{rows} 个向量中有 {count} 个远离其余向量，最远为其 {times:.3g} 倍（物品 {named}）：未参与训练，"
        "仅获得最近的ID。请检查其来源。",
    ),
    "answered": ("semantic_id: {status} ({reason})", "semantic_id: {status}（{reason}）"),
    "passed_over": ("semantic_id: {step} did not answer: {reason}", "semantic_id: {step} 未采用: {reason}"),
    "settings_differ": (
        "The IDs were trained with {found}, this dataset asks for {wanted}; they stay as they are. {how}",
        "现有ID按 {found} 训练，本数据集要求 {wanted}；ID保持不变。{how}",
    ),
    "waiting": (
        "Waiting for {owner} to finish generating semantic_id ({seconds:.0f} s so far)",
        "等待 {owner} 生成semantic_id（已等待 {seconds:.0f} 秒）",
    ),
    "unlocked": (
        "The lock {path} cannot be used ({error}); going on without it: work may be done twice, never wrongly",
        "无法使用锁 {path}（{error}）；将不加锁继续：可能重复计算，但不会出错",
    ),
    "not_saved": (
        "semantic_id could not be saved ({error}); they stay in this process's memory",
        "无法保存semantic_id（{error}）；仅保留在本进程内存中",
    ),
    "json_not_saved": (
        "semantic_id_dict.json was not written to {path} ({error}); the cache serves the IDs",
        "未能将semantic_id_dict.json写入 {path}（{error}）；将由缓存提供",
    ),
    "set_aside": (
        "{path} is damaged ({error}); set aside as {aside}",
        "{path} 已损坏（{error}）；已另存为 {aside}",
    ),
    "left_damaged": (
        "{path} is damaged ({error}); it is left as it is, because nothing is written here",
        "{path} 已损坏（{error}）；此处不写入任何内容，文件保持原样",
    ),
    "not_set_aside": (
        "{path} is damaged ({error}) and could not be set aside ({refusal})",
        "{path} 已损坏（{error}），且无法将其移开（{refusal}）",
    ),
    "healed": ("Healed the semantic_id table from {source}; no ID moved", "已从 {source} 恢复semantic_id表；ID未变"),
    "lost": (
        "The semantic_id table of lineage {lineage} is damaged or gone, and nothing is left to heal it from: lineage "
        "{new} answers and IDs move. Recommenders trained on the old IDs must be trained again.",
        "谱系 {lineage} 的semantic_id表已损坏或丢失且无法恢复: 由谱系 {new} 提供，ID会改变。"
        "基于旧ID训练的推荐模型需要重新训练。",
    ),
    "lost_elsewhere": (
        "The semantic_id table of lineage {lineage}, which served another directory, is damaged: whether its IDs were "
        "of these items cannot be told. If they were, they move: bring the table back from a backup",
        "曾用于另一目录的谱系 {lineage} 的semantic_id表已损坏: 无法判断其ID是否属于这些物品。"
        "若属于，则ID会改变: 请从备份恢复该表",
    ),
    "akin": (
        "There are two sets of IDs for these items, under vectors of two encoders: {moved} of {items} have another ID "
        "in lineage {lineage} ({where}), which served another directory. To have that one here, name it: parent=",
        "这些物品在两个编码器的向量下有两套ID: {items} 个物品里有 {moved} 个的ID"
        "与曾用于另一目录的谱系 {lineage}（{where}）不同。如需在此使用后者，请用 parent= 指定",
    ),
    "lost_in_part": (
        "Table {generation} of lineage {lineage} is damaged and nothing is left to heal it from: {known} items keep "
        "their IDs, those added since may have got others",
        "谱系 {lineage} 的第 {generation} 代表已损坏且无法恢复: {known} 个物品的ID不变，其后新增物品的ID可能改变",
    ),
    "healed_in_part": (
        "Healed lineage {lineage} from {source}, but it had been extended meanwhile: {others} items had got other IDs "
        "and keep those, {shared} share an ID with an item added since",
        "已从 {source} 恢复谱系 {lineage}，但其间该谱系已被扩展: {others} 个物品已有新ID并保留新ID，"
        "{shared} 个物品与其后新增的物品共用ID",
    ),
    "gate_unknown": (
        "ALLOW_SEMANTIC_GENERATION={value!r} is not understood; generation stays forbidden. Use true or false.",
        "无法识别 ALLOW_SEMANTIC_GENERATION={value!r}；视为禁止生成。请使用 true 或 false。",
    ),
    "passed_over_all": (
        "What could not be read in the cache was passed over ({count} in all), the first: {path} ({error})",
        "已跳过缓存中无法读取的内容（共 {count} 处），第一处: {path}（{error}）",
    ),
    "private_set": (
        "A set of IDs of its own was made here: {path} could not be read ({error}), and whoever can read it may be "
        "served others. Let both read one cache (group rights, umask), or name one table as parent",
        "此处生成了独立的一套ID: {path} 无法读取（{error}），能读取者可能得到不同的ID。"
        "请让双方读取同一缓存（组权限、umask），或以同一张表作为 parent",
    ),
    "export_unreadable": (
        "{path} could not be read ({error}) and is passed over: it may hold other IDs than those served here",
        "无法读取 {path}（{error}），已跳过: 其中的ID可能与此处使用的不同",
    ),
    "next_folder": (
        "{path} did not take the table ({error}); trying the next cache folder",
        "{path} 未能写入表（{error}）；尝试下一个缓存目录",
    ),
    "not_understood": (
        "{variable}={value!r} is not understood (wanted: {wanted}); used instead: {used}",
        "无法识别 {variable}={value!r}（应为: {wanted}）；改用: {used}",
    ),
    "stale": (
        "semantic_id is stale: {reason}. {known} known items keep their IDs, items not in the table get the default ID",
        "semantic_id已过期: {reason}。{known} 个已知物品保留其ID，其余物品使用默认值",
    ),
    "default": ("Default semantic IDs are used: {reason}", "将使用默认semantic_id: {reason}"),
    "low_coverage": (
        "Only {share:.1%} of the items asked for have a semantic_id. Without: {missed}, ...; with: {known}, ... "
        "Are they ids of the same kind (creative ids, not re-ids)?",
        "查询的物品中仅 {share:.1%} 有semantic_id。没有的: {missed} 等；有的: {known} 等。"
        "两者是否为同一种ID（creative id，而非 re-id）？",
    ),
    "drift": (
        "Vectors of known items have moved to another space (relative error {error:.3f}, {fitted:.3f} at the fit): "
        "their IDs stay, and {new} new items get none until somebody retrains. {how}",
        "已知物品的向量已属于另一空间（相对误差 {error:.3f}，训练时为 {fitted:.3f}）；其ID保持不变，"
        "{new} 个新物品在重新训练之前没有ID。{how}",
    ),
    "branched": (
        "A branch begins: lineage {lineage} cannot be extended where it lies ({where}); new items go into {branch}, "
        "a lineage of its own. Whoever is on the one is never served the other",
        "谱系 {lineage} 无法在其所在位置（{where}）扩展: 新物品写入分支 {branch}，它是独立的谱系，两者互不替换",
    ),
    "apart": (
        "There are two sets of IDs for these items: {moved} of {items} have another ID in lineage {other} ({where}) "
        "than in lineage {lineage}, which was served here before and stays. To take the other one, name it: SEMID_PIN, "
        "semid pin, or parent=",
        "这些物品有两套ID: 谱系 {other}（{where}）中 {items} 个物品里有 {moved} 个的ID与谱系 {lineage} 不同；"
        "此前使用的是后者，继续使用。如需改用前者，请用 SEMID_PIN、semid pin 或 parent= 指定",
    ),
    "moved": (
        "IDs have moved: {moved} of {items} known items have another one than before. Lineage {lineage} served this "
        "directory, lineage {new} answers now. Recommenders of the old IDs need the old table (parent=, SEMID_PIN) or "
        "must be trained again",
        "{items} 个已知物品中有 {moved} 个的ID发生改变: 此目录此前由谱系 {lineage} 提供，现由谱系 {new} 提供。"
        "基于旧ID训练的推荐模型需要使用旧表（parent=、SEMID_PIN）或重新训练",
    ),
    "far": (
        "The vectors of {new} new items lie far from those that the codebooks were made for (error {error:.3f} of the "
        "variance, {expected:.3f} at the fit; {length:.3g} times as long). Are they of the same encoder, and "
        "normalized in the same way? They got IDs.",
        "{new} 个新物品的向量与码本训练时的向量相差很大（误差为方差的 {error:.3f}，训练时为 {expected:.3f}；"
        "长度为其 {length:.3g} 倍）。是否来自同一编码器并以同样方式归一化？已为其生成ID。",
    ),
    "out_of_memory": (
        "Out of memory on {device}; trying again {how}",
        "{device} 内存不足；{how} 重试",
    ),
    "chosen": (
        "Codebooks of {algorithm}: error {end:.4f} on held-out items, {start:.4f} without networks (these: {networks})",
        "{algorithm} 码本：留出物品误差 {end:.4f}（无网络时 {start:.4f}；网络: {networks}）",
    ),
    "streaming": (
        "The vectors would take {size} of memory and {limit} are allowed (memory_limit): they are streamed in parts",
        "向量需要 {size} 内存，上限为 {limit}（memory_limit）: 将分块流式处理",
    ),
    "not_streamed": (
        "The vectors would take {size} of memory and {limit} are allowed (memory_limit); they are read into memory "
        "all the same: {why}",
        "向量需要 {size} 内存，上限为 {limit}（memory_limit）；仍将全部读入内存: {why}",
    ),
    "workers_capped": (
        "{workers} of {cores} processes do the stage {stage}: {limit} (memory_limit) hold no more, of {each} each",
        "阶段 {stage} 使用 {workers}/{cores} 个进程: {limit}（memory_limit）容不下更多，每个需 {each}",
    ),
    "sample_capped": (
        "Codebooks are fitted on {sampled} of {items} items, since {limit} (memory_limit) hold no more at once: "
        "another limit gives other IDs, unless the number is named (sample_items, --sample)",
        "码本由 {items} 个物品中的 {sampled} 个训练，因为 {limit}（memory_limit）一次容不下更多: "
        "改变上限会得到不同的ID，除非指定数量（sample_items，--sample）",
    ),
    "streamed_again": (
        "Others work on the same parts and took the work folder away ({error}); looking for what they published",
        "其他进程正在处理相同的分块并已移除工作目录（{error}）；将查找其发布的结果",
    ),
    "sizes_guessed": (
        "{where} does not say how many codes its levels have; the largest are {largest}, so {size} are assumed for "
        "each. State them (codebook_sizes=, --codebook-size) where embedding tables, offsets or tokens need them",
        "{where} 未说明各层的码数；最大的码为 {largest}，故假定每层为 {size}。"
        "若据此构建嵌入表、偏移或词元，请明确给出（codebook_sizes=，--codebook-size）",
    ),
    "resumed": (
        "{done} of {parts} parts of the stage {stage} are there already",
        "阶段 {stage} 的 {parts} 个分块中已有 {done} 个完成",
    ),
    "unexpected": (
        "semantic_id generation failed unexpectedly: {error}",
        "semantic_id生成时发生意外错误: {error}",
    ),
    "folder_unusable": (
        "cache folder '{path}' is passed over: {error}",
        "已跳过缓存目录 '{path}': {error}",
    ),
    "not_a_table": (
        "What lies at the place of a table is passed over: {error}",
        "表的位置上有其他内容，已跳过: {error}",
    ),
    "process_ended": (
        "a process of the stage {stage} ended with {code}; its part is done again",
        "阶段 {stage} 的一个进程以 {code} 结束；将重新处理其分块",
    ),
    "file_kept": (
        "a {name} of yours came in our way; it is {kept} now",
        "您的 {name} 与本程序要写入的文件同名；已改名为 {kept}",
    ),
    "forced": (
        "{forbidden} forbids to {what}; it is done all the same (--force)",
        "{forbidden} 禁止此操作（{what}）；因 --force 仍然执行",
    ),
    "behaviour_taken": (
        "sequences take part in the IDs: an item's own vector counts as {weight:g} neighbours",
        "序列参与生成ID：物品自身向量的权重相当于 {weight:g} 个邻居",
    ),
    "behaviour_left_out": (
        "the sequences were left out of the IDs: on held-out items the vectors alone find as many, or more new ones. "
        "Give longer sequences, or none",
        "序列未参与生成ID：在留出的物品上，仅用向量的效果不差，或能找到更多新物品。请提供更长的序列，或不提供",
    ),
    "beyond_capacity": (
        "{items} items do not fit into {capacity} IDs: items will share IDs",
        "{items} 个物品超出 {capacity} 个ID的容量：部分物品将共享ID",
    ),
}


# Of the lines of level WARNING (W) and ERROR (E), in either language. A number is never given to another line.
CODES = {
    "no_folder": "W001",
    "no_features": "W002",
    "defaults": "W003",
    "stale": "W004",
    "gate_unknown": "W005",
    "not_understood": "W006",
    "forced": "W007",
    "feature_missing": "W010",
    "feature_unreadable": "W011",
    "bad_rows": "W012",
    "ids_converted": "W013",
    "index_as_items": "W014",
    "files_passed_over": "W015",
    "beyond_bulk": "W016",
    "low_coverage": "W017",
    "sizes_guessed": "W018",
    "beyond_capacity": "W019",
    "drift": "W020",
    "far": "W021",
    "branched": "W022",
    "private_set": "W023",
    "ids_untidy": "W024",
    "behaviour_left_out": "W025",
    "sample_capped": "W026",
    "healed": "W030",
    "set_aside": "W031",
    "left_damaged": "W032",
    "not_set_aside": "W033",
    "passed_over_all": "W034",
    "export_unreadable": "W035",
    "not_a_table": "W036",
    "not_saved": "W040",
    "next_folder": "W041",
    "folder_unusable": "W042",
    "unlocked": "W043",
    "file_kept": "W044",
    "out_of_memory": "W050",
    "not_streamed": "W051",
    "streamed_again": "W052",
    "process_ended": "W053",
    "default": "E001",
    "unexpected": "E002",
    "moved": "E003",
    "apart": "E004",
    "lost": "E005",
    "lost_in_part": "E006",
    "healed_in_part": "E007",
    "akin": "E008",
    "lost_elsewhere": "E009",
}
PROMISED = {"no_folder", "no_features", "defaults"}  # the original's lines of these levels
LEVELS = {"": logging.INFO, "W": logging.WARNING, "E": logging.ERROR}  # by the letter of a line's code

_language = "en"  # of the door that was last passed, see `environment.Context`


def speak(language: str) -> None:
    """Say lines in this language from now on: "en" or "zh". Doors call it; nothing deeper asks the environment."""
    global _language  # noqa: PLW0603 - as the logger, it belongs to the process
    _language = language


def text(message: str, /, **fields: object) -> str:
    """Return the line with this id in the language of the door that was last passed (`SEMID_LANG`, else the locale)."""
    english, chinese = LINES[message]
    if _language != "zh":
        return english.format(**fields)
    return chinese.format(
        **{name: said(str(one)) if isinstance(one, str | Exception) else one for name, one in fields.items()}
    )


def said(line: str) -> str:
    """Return a line that was written in English in the language of the door, as far as `_chinese` has it."""
    if _language != "zh":
        return line
    from semid_dataset._chinese import chinese  # a catalogue that English readers need not load

    return chinese(line)


def coded(message: str, /, **fields: object) -> str:
    """Return the line with this id and its code; the original's lines are left as they were promised."""
    code = CODES.get(message)
    if code is None or (_language == "zh" and message in PROMISED):
        return text(message, **fields)
    return f"{text(message, **fields)} [SEMID-{code}]"


def tell(message: str, /, level: int | None = None, *, trace: bool = False, **fields: object) -> None:
    """
    Log the line with this id.

    Args:
        message: its id.
        level: by default what its code says; lines without one are INFO.
        trace: log where the exception that is handled came from, too.
        fields: what the line names.
    """
    code = CODES.get(message, "")
    level = LEVELS[code[:1]] if level is None else level
    if logger.isEnabledFor(level):
        wanted = code and level >= logging.WARNING
        line = coded(message, **fields) if wanted else text(message, **fields)
        logger.log(level, "%s", line, exc_info=trace, extra={"code": f"SEMID-{code}" if wanted else ""})


def degrade(message: str, /, **fields: Any) -> None:
    """Log the line with this id and warn, so that a program without logging sees it too."""
    tell(message, **fields)
    warn(message, **fields)


def warn(message: str, /, **fields: object) -> None:
    """Warn in the name of the first caller that is neither ours nor the standard library's."""
    frame = caller = sys._getframe(1)
    while (above := caller.f_back) is not None and _is_inside(caller.f_code.co_filename):
        caller = above
    if _is_inside(caller.f_code.co_filename):  # a thread of ours: nobody called
        caller = frame
    warnings.warn_explicit(
        coded(message, **fields),
        SemanticIdWarning,
        caller.f_code.co_filename,
        caller.f_lineno,
        caller.f_globals.get("__name__") or "sys",
        caller.f_globals.setdefault("__warningregistry__", {}),
    )


def _is_inside(file: str) -> bool:
    """Whether a file is this package's, or the standard library's, through which this package's own calls go."""
    library = file.startswith((LIBRARY, "<frozen ")) and "site-packages" not in file
    return library or file.startswith(HOME)
