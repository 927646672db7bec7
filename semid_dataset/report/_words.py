"""
The words of the page, in English and Chinese under the same names.

Names with "js." go to the page's script. Fields are written `{share!p}` (per cent), `{items!i}` (12,101), `{error!n}`
(0.3217) or `{name}`.
"""

import string
from collections.abc import Mapping
from typing import Any

from semid_dataset.table.figures import number, percent

__all__ = ["LANGUAGES", "Words", "script_words"]

LANGUAGES = {"en": 0, "zh": 1}

TEXTS: dict[str, tuple[str, str]] = {
    "lang": ("en", "zh-CN"),
    "title": ("Semantic IDs: {name}, {items!i} items, {date}", "语义ID：{name}，{items!i} 个物品，{date}"),
    "h1": ("Semantic IDs of {name}", "{name} 的语义ID"),
    "undated": ("date not recorded", "日期未记录"),
    "lead": ("{items!i} items, {levels} codes each ({sizes})", "{items!i} 个物品，每个 {levels} 级编码（{sizes}）"),
    "footer": (
        "Made by semid_dataset, {made}. This page loads nothing from elsewhere.",
        "由 semid_dataset 生成于 {made}。本页不从外部加载任何内容。",
    ),
    "join": ("; ", "；"),
    "skip": ("Skip to the tree", "跳到编码树"),
    "sections": ("Sections", "章节"),
    "unknown": ("not measured", "未测量"),
    "unrecorded": ("not recorded", "未记录"),
    "stale": (
        "These IDs are stale: items that the table does not know get the default ID.",
        "这些ID已过期：表中没有的物品使用默认ID。",
    ),
    "empty": (
        "This table holds no item: every item gets the default ID, all zeros.",
        "此表不含任何物品：所有物品都使用全零的默认ID。",
    ),
    # --- the answer
    "question": ("Are these IDs good?", "这些ID好吗？"),
    "answer.good": ("Yes: all {made} checks are good.", "好：{made} 项检查全部通过。"),
    "answer.watch": (
        "Usable, with something to watch: {worst}.",
        "可以使用，但需留意：{worst}。",
    ),
    "answer.bad": ("No: {worst}.", "不好：{worst}。"),
    "answer.unknown": (
        "That cannot be said: {worst}.",
        "无法判断：{worst}。",
    ),
    "answer.rest": ("Of {made} checks, {good} are good", "{made} 项检查中 {good} 项良好"),
    "answer.unmade": ("{count} could not be made", "{count} 项无法进行"),
    "answer.honest": (
        "The limits are rules of thumb about codes. They were not validated against the recall of a recommender; "
        "between two sets of IDs, recall decides.",
        "以上界限是关于编码的经验法则，未经推荐模型召回率验证；两套ID孰优孰劣，应以召回率为准。",
    ),
    "verdict.good": ("good", "良好"),
    "verdict.watch": ("watch", "留意"),
    "verdict.bad": ("bad", "不好"),
    "verdict.unknown": ("not measured", "未测量"),
    "column.check": ("check", "检查项"),
    "column.found": ("found", "结果"),
    "column.rule": ("rule, and what to do", "标准与建议"),
    "check.state": ("State", "状态"),
    "found.state.empty": ("no item has an ID", "没有物品拥有ID"),
    "found.state.stale": ("stale: new items have no ID", "已过期：新物品没有ID"),
    "rule.state": (
        "The table holds the items that are asked for, else they get the default ID.",
        "表中应包含被查询的物品，否则它们使用默认ID。",
    ),
    "do.state": (
        "The reason above says what is missing. Allow generation, or give the embeddings, and read the IDs again.",
        "上方的原因说明缺少什么。允许生成或提供特征后重新读取。",
    ),
    "check.raw": ("Shared IDs before uniqueness", "去重前共用ID的物品"),
    "found.raw": ("{share!p} of the items", "{share!p} 的物品"),
    "short.raw": ("{share!p} of the items shared their ID before uniqueness", "去重前 {share!p} 的物品共用ID"),
    "rule.raw": (
        "Good up to {good!p}, bad above {bad!p}: an item moved to be unique has a last code that no longer says "
        "what it is like.",
        "不超过 {good!p} 为良好，超过 {bad!p} 为不好：为去重而改动的物品，其末级编码不再反映内容。",
    ),
    "do.raw": (
        "A level more, or more codes a level. Items with equal vectors cannot be told apart by either.",
        "增加一级，或增加每级的编码数。向量完全相同的物品无论如何都无法区分。",
    ),
    "unknown.raw": (
        "Known only where the IDs were made by this package.",
        "仅当ID由本软件包生成时才可知。",
    ),
    "check.final": ("Shared IDs, final", "最终共用ID的物品"),
    "found.final": ("{share!p} ({items!i} items)", "{share!p}（{items!i} 个物品）"),
    "short.final": ("{share!p} of the items share their ID", "{share!p} 的物品共用ID"),
    "rule.final": (
        "Good if none, bad above {bad!p}: what is generated as an ID must lead to one item. By itself it says "
        "nothing: anything can be made unique.",
        "没有为良好，超过 {bad!p} 为不好：生成的ID应对应唯一物品。单看此项没有意义：任何ID都可以强行去重。",
    ),
    "do.final": (
        "Generate with unique=True (the default), or add a level; a ranker may live with shared IDs.",
        "使用 unique=True（默认）生成，或增加一级；排序模型可以容忍共用ID。",
    ),
    "check.held_out": ("Error on held-out items", "留出物品的误差"),
    "found.held_out": (
        "{held_out!n}, in sample {in_sample!n}{excess}",
        "{held_out!n}，训练内 {in_sample!n}{excess}",
    ),
    "found.excess": (" ({share!p} above)", "（高出 {share!p}）"),
    "short.held_out": (
        "new items are written less precisely than known ones (error {held_out!n} held out, {in_sample!n} in sample)",
        "新物品的表示不如已知物品精确（留出误差 {held_out!n}，训练内 {in_sample!n}）",
    ),
    "rule.held_out": (
        "Good within {good!p} of the in-sample error; bad only from {bad!n} on, where codes tell of a new item no "
        "more than the mean does. In between says how much less precise new items are; it does not predict recall.",
        "与训练内误差相差 {good!p} 以内为良好；达到 {bad!n}（编码不比均值更有信息）才算不好。"
        "介于两者之间只说明新物品的精度较低，并不能预测召回率。",
    ),
    "do.held_out": (
        "More items for the codebooks help. Fewer codes lower the gap too, but on one real set they lowered recall: "
        "compare recall before you change it.",
        "用更多物品训练码本。减少编码也会缩小差距，但在一个真实数据集上反而降低了召回率：修改前请先比较召回率。",
    ),
    "unknown.held_out": (
        "Known only where codebooks were trained with items held out.",
        "仅当训练码本时留出了物品才可知。",
    ),
    "check.perplexity": ("Use of codes, worst level", "编码利用率（最差一级）"),
    "found.perplexity": (
        "level {level}: perplexity {perplexity!n} of {size!i} codes",
        "第 {level} 级：困惑度 {perplexity!n} / {size!i} 个编码",
    ),
    "short.perplexity": (
        "level {level} uses its codes unevenly (perplexity {perplexity!n} of {size!i})",
        "第 {level} 级编码使用不均（困惑度 {perplexity!n} / {size!i}）",
    ),
    "rule.perplexity": (
        "Good from {good!p} of the codes on (of the items, where they are fewer), bad below {bad!p}: half is one bit "
        "less than the level could carry, a quarter two.",
        "达到编码数（或更少的物品数）的 {good!p} 为良好，低于 {bad!p} 为不好："
        "一半意味着该级少携带 1 比特，四分之一为 2 比特。",
    ),
    "do.perplexity": (
        "Look at the largest codes of level {level} in the tree: many equal or empty texts? Else fewer codes there.",
        "在树中查看第 {level} 级最大的编码：是否有大量相同或空文本？否则减少该级编码数。",
    ),
    "check.steps": ("Error after each level", "逐级误差"),
    "found.steps": ("{error!n} after the last", "末级之后 {error!n}"),
    "short.steps": ("level {idle} brings nothing", "第 {idle} 级没有作用"),
    "rule.steps": (
        "Good if every level takes away at least {good!p} of the error that is left.",
        "每一级至少减少剩余误差的 {good!p} 为良好。",
    ),
    "do.steps": ("Leave level {idle} out, or look at its codes.", "去掉第 {idle} 级，或检查其编码。"),
    "check.neighbours": ("Neighbours that share code 1", "共用首级编码的近邻"),
    "found.neighbours": ("{near!p}, random pairs {random!p}", "{near!p}，随机物品对 {random!p}"),
    "short.neighbours": (
        "only {near!p} of the nearest neighbours share their first code",
        "仅 {near!p} 的近邻共用首级编码",
    ),
    "short.neighbours.unknown": ("neighbours were not measured", "近邻未测量"),
    "short.raw.unknown": ("raw collisions were not measured", "去重前的冲突未测量"),
    "rule.neighbours": (
        "Good from {good!p} beyond chance on, bad below {bad!p}: items that lie near one another are to share what a "
        "model learns about their first code.",
        "超出随机水平 {good!p} 以上为良好，低于 {bad!p} 为不好：相近的物品应共享模型从首级编码学到的内容。",
    ),
    "do.neighbours": (
        "Fewer codes on level 1, or other embeddings: look at what lies together in the tree.",
        "减少首级编码数，或更换特征：看看树中哪些物品在一起。",
    ),
    "unknown.neighbours": (
        "Give the vectors: semid report TABLE --embeddings SOURCE.",
        "请提供向量：semid report TABLE --embeddings SOURCE。",
    ),
    "check.largest": ("Largest first code", "最大的首级编码"),
    "found.largest": ("{share!p} ({items!i} items)", "{share!p}（{items!i} 个物品）"),
    "short.largest": ("one first code holds {share!p} of the items", "一个首级编码占 {share!p} 的物品"),
    "rule.largest": (
        "Good up to {good!p} of the items, bad above {bad!p}: a clump, often of empty or default texts.",
        "不超过物品的 {good!p} 为良好，超过 {bad!p} 为不好：往往是空文本或默认文本聚成一团。",
    ),
    "do.largest": (
        "Open it in the tree. Items without content are better left without an ID.",
        "在树中打开它。没有内容的物品最好不分配ID。",
    ),
    "check.duplicates": ("Exact duplicates", "完全重复的向量"),
    "found.duplicates": ("{share!p} ({count!i} vectors)", "{share!p}（{count!i} 个向量）"),
    "short.duplicates": ("{share!p} of the vectors equal another one", "{share!p} 的向量与其他向量相同"),
    "rule.duplicates": (
        "Good up to {good!p}, bad above {bad!p}: nothing in the vectors tells such items apart, so their last codes "
        "are arbitrary.",
        "不超过 {good!p} 为良好，超过 {bad!p} 为不好：向量无法区分这些物品，其末级编码是任意的。",
    ),
    "do.duplicates": (
        "They are listed below, where vectors are given. Join them, or add a feature that differs.",
        "若提供了向量，下方会列出它们。合并它们，或加入有区别的特征。",
    ),
    "unknown.duplicates": (
        "Give the vectors: semid report TABLE --embeddings SOURCE.",
        "请提供向量：semid report TABLE --embeddings SOURCE。",
    ),
    "check.coverage": ("Coverage", "覆盖率"),
    "found.coverage.candidates": ("{share!p} of {asked!i} candidates", "{asked!i} 个候选物品的 {share!p}"),
    "found.coverage.titles": ("{share!p} of {asked!i} items with titles", "{asked!i} 个有标题物品的 {share!p}"),
    "short.coverage": ("only {share!p} of the items asked for have an ID", "仅 {share!p} 的被查询物品有ID"),
    "rule.coverage": (
        "Good from {good!p} on, bad below {bad!p}: all items without an ID look alike to a model.",
        "达到 {good!p} 为良好，低于 {bad!p} 为不好：没有ID的物品在模型看来都一样。",
    ),
    "do.coverage": (
        "Are they ids of the same kind (creative ids, not re-ids)? Else extend the table with their embeddings.",
        "是否为同一种ID（creative id，而非 re-id）？否则用它们的特征扩展此表。",
    ),
    "unknown.coverage": (
        "Give titles (--titles), or candidates from Python.",
        "请提供标题（--titles），或在 Python 中提供候选物品。",
    ),
    "check.extensions": ("Items added since", "此后新增的物品"),
    "found.extensions": (
        "added: {added!i}, extensions: {times!i}; worst error {error!n}, held out at the fit {fitted!n}",
        "{times!i} 次共 {added!i} 个；最大误差 {error!n}，初始留出误差 {fitted!n}",
    ),
    "short.extensions": (
        "added items fit the codebooks badly (error {error!n}, items held out at the fit {fitted!n})",
        "新增物品与码本不符（误差 {error!n}，初始留出误差 {fitted!n}）",
    ),
    "rule.extensions": (
        "Good up to {good} times the error of items held out at the fit, bad above {bad} times (more where few were "
        "added): then the codebooks were made for other items.",
        "不超过初始留出误差的 {good} 倍为良好，超过 {bad} 倍为不好（新增很少时放宽）：超出后码本已不适用于这些物品。",
    ),
    "do.extensions": (
        "Plan a retraining, of the IDs and of the recommender with them.",
        "安排重新训练ID，并随之重新训练推荐模型。",
    ),
    "note.thrown_away": (
        "The k-means codebooks were kept: none of {epochs!i} epochs of rqvae was clearly better on held-out items, so "
        "what they learned was thrown away, and the IDs are those of rqkmeans.",
        "保留了 k-means 码本：rqvae 的 {epochs!i} 轮训练在留出物品上均无明显改进，"
        "其结果已被丢弃，这些ID即 rqkmeans 的ID。",
    ),
    "note.sizes": (
        "Nobody stated how many codes a level has; {sizes} are taken, the powers of two that hold the largest codes.",
        "没有说明每级的编码数；此处取能容纳最大编码的 2 的幂：{sizes}。",
    ),
    "note.grown": (
        "Raw figures are of the {measured!i} items at training; the table now has {items!i}.",
        "去重前的数字来自训练时的 {measured!i} 个物品；此表现有 {items!i} 个。",
    ),
    "note.healed": (
        "Generation {generation} was recovered: {how}.",
        "第 {generation} 代是恢复而来的：{how}。",
    ),
    "note.titles": (
        "{known!i} of {given!i} titles are of items in this table.",
        "{given!i} 个标题中有 {known!i} 个属于此表中的物品。",
    ),
    "note.no_vectors": (
        "No vectors were given, so nearness below is that of the codewords. With --embeddings it is that of the items.",
        "未提供向量，因此下文的远近按码字计算。加上 --embeddings 则按物品本身计算。",
    ),
    # --- tree, map, item
    "tree": ("Tree of codes", "编码树"),
    "tree.none": ("The table holds no item.", "此表不含任何物品。"),
    "tree.lead": (
        "Items with the same first code lie in one sector, outward ring by ring to the last code. {sample}{words}",
        "首级编码相同的物品位于同一扇区，由内向外逐级排列。{sample}{words}",
    ),
    "tree.whole": ("Every item is in it.", "包含所有物品。"),
    "tree.sample": (
        "It lists a sample of {sampled!i} items; counts of the first two levels are of all.",
        "列出 {sampled!i} 个物品的样本；前两级的计数为全部物品。",
    ),
    "tree.words": (
        " The words of a prefix are those by which its titles differ from the rest (class-based TF-IDF).",
        "前缀旁的词是其标题区别于其他物品的词（class-based TF-IDF）。",
    ),
    "tree.help": (
        "Click a sector to go in, the middle to go out. "
        "Keyboard: arrows choose a sector, Enter goes in, Escape goes out.",
        "点击扇区进入，点击中心返回。键盘：方向键选择扇区，Enter 进入，Escape 返回。",
    ),
    "tree.sun": ("Sunburst of the codes", "编码旭日图"),
    "find": ("Find items", "查找物品"),
    "find.titles": (
        "Words of a title, an item, or a prefix such as 12-5-",
        "标题中的词、物品编号，或前缀（如 12-5-）",
    ),
    "find.keys": ("An item, or a prefix such as 12-5-", "物品编号，或前缀（如 12-5-）"),
    "where": ("Where you are", "当前位置"),
    "noscript": (
        "The tree opens with the page's own script; nothing is loaded.",
        "树的展开需要本页自带的脚本；不加载任何内容。",
    ),
    "items": ("{count!i} items", "{count!i} 个物品"),
    "more": ("and {count!i} more", "另有 {count!i} 个"),
    "map": ("Map", "地图"),
    "map.lead": (
        "Do neighbours share codes? Click an item: its {nearest} nearest {among}are joined to it, with their codes. "
        "{source}",
        "近邻是否共用编码？点击一个物品：与它最近的 {nearest} 个物品{among}会连线显示，并列出编码。{source}",
    ),
    "map.share": (
        "Over all items, {near!p} of the 10 nearest share the first code; of random pairs {random!p}.",
        "就全部物品而言，最近的 10 个物品中 {near!p} 共用首级编码；随机物品对为 {random!p}。",
    ),
    "map.among": ("(among {among!i} items drawn evenly) ", "（在均匀抽取的 {among!i} 个物品中）"),
    "map.vectors": (
        "The two axes show {variance!p} of the variance of the vectors: dots that lie together here may be far apart; "
        "the distances that are listed are true.",
        "两条轴只显示向量方差的 {variance!p}：图上相近的点可能相距很远；列出的距离是真实距离。",
    ),
    "map.codewords": (
        "Without vectors, this is the map of what IDs stand for (the sums of the items' codewords; the two axes show "
        "{variance!p} of its variance), in which near items share codes by construction. With --embeddings it answers.",
        "没有向量时，这里显示的是ID所代表的位置（码字之和；两轴显示其方差的 {variance!p}），"
        "相近的物品必然共用编码。加上 --embeddings 才能回答此问题。",
    ),
    "map.sample": (" {count!i} items drawn evenly are on it.", "图上是均匀抽取的 {count!i} 个物品。"),
    "map.colours": (
        " Colour is the first code. The prefix that is open in the tree is bright, the rest faint.",
        "颜色表示首级编码。树中打开的前缀高亮，其余变淡。",
    ),
    "map.help": (
        "Draw a rectangle to choose items (enlarged: with Shift); a code chosen in the tree stays bright here. "
        "Keyboard: arrows go to the next item that way, Enter opens it, + and - zoom, 0 shows all, Escape lets go.",
        "拖出矩形可选择物品（放大时按住 Shift）；在树中选择的编码在此保持高亮。"
        "键盘：方向键移到该方向的下一个物品，Enter 打开，+ 和 - 缩放，0 显示全部，Escape 取消。",
    ),
    "map.canvas": ("Map of the items", "物品地图"),
    "map.none": (
        "neither vectors nor codebooks are at hand.",
        "没有向量，也没有码本。",
    ),
    "map.in": ("Zoom in", "放大"),
    "map.out": ("Zoom out", "缩小"),
    "map.all": ("Show all", "显示全部"),
    # --- figures
    "collisions": ("Collisions", "冲突"),
    "collisions.lead": (
        "Raw is what the codebooks give, final what was stored after uniqueness. Only the two together say something.",
        "“去重前”是码本直接给出的结果，“最终”是去重后保存的结果。两者须一起看。",
    ),
    "raw": ("raw", "去重前"),
    "final": ("final", "最终"),
    "collisions.share": ("Items that share their ID", "共用ID的物品"),
    "collisions.unique": ("Distinct IDs per item", "不同ID数 / 物品数"),
    "collisions.largest": ("Largest group with one ID", "同一ID的最大组"),
    "collisions.moved": (
        "To be unique, {moved} items took another code than their nearest. "
        "Exact duplicates among the vectors: {equal}.",
        "为去重，{moved} 个物品使用了并非最近的编码。完全重复的向量：{equal}。",
    ),
    "levels": ("Levels", "各级"),
    "levels.lead": (
        "Perplexity is how many evenly used codes would carry as much; the bar says how near it is to all of them.",
        "困惑度表示等效的均匀使用的编码数；条形表示其占全部编码的比例。",
    ),
    "level": ("level", "级"),
    "levels.used": ("codes used", "已用编码"),
    "levels.perplexity": ("perplexity", "困惑度"),
    "levels.prefixes": ("prefixes in use", "已用前缀"),
    "levels.largest": ("largest code", "最大编码"),
    "levels.error": ("error so far", "至此误差"),
    "sizes": ("Level {level}: sizes of codes", "第 {level} 级：编码大小"),
    "sizes.alt": (
        "How many codes of level {level} have how many items; {unused} have none",
        "第 {level} 级有多少编码含多少物品；{unused} 个编码为空",
    ),
    "sizes.axis": ("items with the code", "该编码的物品数"),
    "sizes.bins": ("items with the code, in bins of {width!i}", "该编码的物品数，每组 {width!i}"),
    "sizes.below": (
        "Number of codes by how many items have them. "
        "Median {median!i}, largest {largest!i}; {unused!i} of {size!i} unused.",
        "按物品数统计的编码数。中位数 {median!i}，最大 {largest!i}；{size!i} 个中 {unused!i} 个未用。",
    ),
    "errors": ("Error left after each level", "逐级剩余误差"),
    "errors.alt": ("Relative error with the first codes alone: {values}", "仅用前几级编码的相对误差：{values}"),
    "errors.axis": ("codes known", "已知编码数"),
    "errors.below": ("1 is the error of the mean alone.", "1 为只用均值的误差。"),
    "training": ("Training and neighbours", "训练与近邻"),
    "training.lead": (
        "Items that lie near one another should share their leading codes, and far more often than random pairs do.",
        "相近的物品应共用前几级编码，且远多于随机物品对。",
    ),
    "curve": ("Training curve", "训练曲线"),
    "curve.epoch": ("Training curve: loss", "训练曲线：损失"),
    "curve.round": ("Training curve: error of every round", "训练曲线：每轮误差"),
    "curve.alt": ("{count} values, from {first!n} to {last!n}", "{count} 个值，从 {first!n} 到 {last!n}"),
    "curve.away": (
        "Not drawn: what these {epochs!i} epochs learned was thrown away.",
        "未绘制：这 {epochs!i} 轮训练的结果已被丢弃。",
    ),
    "epoch": ("epoch", "轮（epoch）"),
    "round": ("round", "轮"),
    "curve.scale": ("The scale does not begin at 0. ", "刻度不从 0 开始。"),
    "curve.held": (
        "Error of {items}items held out: {start!n} with the codebooks alone, {end!n} in the end.",
        "{items}留出物品的误差：仅用码本 {start!n}，最终 {end!n}。",
    ),
    "fidelity": ("Neighbour fidelity", "近邻保真度"),
    "fidelity.alt": (
        "Pairs that share their first codes: near neighbours {near}; random pairs {random}",
        "共用前几级编码的物品对：近邻 {near}；随机 {random}",
    ),
    "fidelity.axis": ("codes in common", "相同的编码数"),
    "fidelity.first": ("first {depth}", "前 {depth} 级"),
    "fidelity.near": ("the 10 nearest items", "最近的 10 个物品"),
    "fidelity.random": ("random pairs", "随机物品对"),
    "relative": ("Relative error", "相对误差"),
    "relative.of": ("of the {items!i} items at training", "训练时的 {items!i} 个物品"),
    "relative.held": (
        "held out: {held}; 0 is exact, 1 is the mean{of}",
        "留出：{held}；0 为精确，1 为均值{of}",
    ),
    "growth": ("Items added over time", "新增物品"),
    "growth.lead": (
        "Known items keep their IDs; new ones are written by the codebooks as they were. Where their error grows, the "
        "codebooks fit them less and less.",
        "已有物品的ID不变；新物品由原码本编码。误差增大说明码本越来越不适用。",
    ),
    "growth.items": ("Items of each generation", "各代物品数"),
    "growth.error": ("Error of the items that were added", "新增物品的误差"),
    "growth.axis": ("generation", "代"),
    "growth.alt": ("{name}: {values}", "{name}：{values}"),
    "growth.fitted": (
        "Of all items at the fit {fitted!n}; of those held out {held}.",
        "初始全部物品 {fitted!n}；留出物品 {held}。",
    ),
    "growth.when": ("when", "时间"),
    "growth.no": ("no.", "代"),
    "growth.all": ("items", "物品"),
    "growth.new": ("new", "新增"),
    "growth.moved": ("moved", "为去重改动"),
    "growth.fit": ("error", "误差"),
    "growth.healed": ("recovered by", "恢复方式"),
    "groups": ("Largest groups with one ID", "同一ID的最大组"),
    "groups.none": ("Every item has an ID of its own.", "每个物品都有自己的ID。"),
    "twins": ("Exact duplicates", "完全重复的向量"),
    "twins.none": ("No vector equals another one exactly.", "没有完全相同的向量。"),
    "twins.one": ("1 vector equals another one exactly.", "1 个向量与其他向量完全相同。"),
    "twins.many": ("{count!i} vectors equal another one exactly.", "{count!i} 个向量与其他向量完全相同。"),
    "twins.counted": (
        "{count!i} counted at training; the vectors were not given, so they are not listed.",
        "训练时计得 {count!i} 个；未提供向量，因此不列出。",
    ),
    "twins.unknown": (
        "not measured; the vectors were not given, so they are not listed.",
        "未测量；未提供向量，因此不列出。",
    ),
    "run": ("The run that made them", "生成过程"),
    "run.all": ("Made in", "总耗时"),
    "run.peak": ("Peak memory of the process", "进程内存峰值"),
    "run.device": ("Device", "设备"),
    "run.stages": ("Stages", "阶段"),
    "provenance": ("Provenance", "来源"),
    "provenance.status": ("Status", "状态"),
    "provenance.file": ("File", "文件"),
    "provenance.memory": ("in memory", "内存中"),
    "provenance.digest": ("Digest", "摘要"),
    "provenance.lineage": ("Lineage", "谱系"),
    "provenance.generation": ("{lineage}, generation {generation}", "{lineage}，第 {generation} 代"),
    "provenance.born": ("Born", "生成于"),
    "provenance.features": ("Features (id:dim)", "特征（id:维度）"),
    "provenance.fusion": ("Fusion", "融合"),
    "provenance.quantizer": ("Quantizer", "量化器"),
    "provenance.has": ("in the file: new items can be encoded", "在文件中：可为新物品编码"),
    "provenance.lacks": ("none in the file", "文件中没有"),
    "provenance.embeddings": ("Embeddings", "特征摘要"),
    "provenance.files": ("Files read", "读取的文件"),
    "provenance.bad_rows": ("Rows skipped", "跳过的行"),
    "provenance.settings": ("Settings", "设置"),
    "provenance.possible": ("Possible IDs", "可能的ID数"),
    # --- two tables
    "compare.title": ("Semantic IDs: {a} and {b}", "语义ID：{a} 与 {b}"),
    "compare.lead": (
        "{common!i} items are in both, {only_a!i} only in {a}, {only_b!i} only in {b}. "
        "{same!i} of those in both have the same ID.",
        "{common!i} 个物品两表都有，{only_a!i} 个仅在 {a}，{only_b!i} 个仅在 {b}。两表都有的物品中 {same!i} 个ID相同。",
    ),
    "compare.checks": ("Side by side", "并排比较"),
    "compare.missing": ("does not apply", "不适用"),
    "compare.together": ("Do they put the same items together?", "它们是否把相同的物品放在一起？"),
    "compare.together.lead": (
        "Codes of two trainings are numbers without a common meaning. So pairs are counted: of the pairs of items that "
        "share their first codes in one table, how many do so in the other.",
        "两次训练的编码数字没有共同含义。因此统计物品对：在一张表中共用前几级编码的物品对，有多少在另一张表中也共用。",
    ),
    "compare.depth": ("first codes in common", "相同的前几级编码"),
    "compare.pairs": ("pairs in {name}", "{name} 中的物品对"),
    "compare.kept": ("of these, together in {name}", "其中在 {name} 中也在一起"),
    "compare.none": ("no pairs", "没有物品对"),
    "compare.followed": ("Where the largest first codes of {a} are in {b}", "{a} 的最大首级编码在 {b} 中的位置"),
    "compare.code": ("code in {name}", "{name} 中的编码"),
    "compare.items": ("items", "物品"),
    "compare.parts": ("most of them are in {name} under", "在 {name} 中多数位于"),
    # --- of the script
    "js.chosen": ("{n} items chosen, of first codes {codes}", "已选择 {n} 个物品，首级编码 {codes}"),
    "js.all": ("all", "全部"),
    "js.back": ("back", "返回"),
    "js.items": ("{n} items", "{n} 个物品"),
    "js.item": ("1 item", "1 个物品"),
    "js.sample": ("{n} in the sample", "样本中 {n} 个"),
    "js.more": ("{n} more", "还有 {n} 个"),
    "js.noneSampled": ("none of its items is in the sample", "样本中没有该前缀的物品"),
    "js.others": ("and others that are not in the sample", "以及样本之外的物品"),
    "js.show": ("Show it in the sunburst", "在旭日图中显示"),
    "js.goInto": ("Go into {prefix}", "进入 {prefix}"),
    "js.point": ("Point at a sector, or tap it.", "指向或点击扇区。"),
    "js.pointMap": ("Point at an item, or tap it.", "指向或点击物品。"),
    "js.found": ("{n} items found", "找到 {n} 个物品"),
    "js.foundSample": ("{n} items found in the sample of {m}", "在 {m} 个物品的样本中找到 {n} 个"),
    "js.nothing": ("No item has all of these words.", "没有物品包含所有这些词。"),
    "js.hits": ("{n} found", "{n} 个匹配"),
    "js.close": ("Close", "关闭"),
    "js.itemOf": ("Item {key}", "物品 {key}"),
    "js.untitled": ("no title", "无标题"),
    "js.notHere": (
        "Item {key} is not on this page (it carries a sample of {m} of {n} items).",
        "物品 {key} 不在本页（本页含 {n} 个物品中 {m} 个的样本）。",
    ),
    "js.unknownItem": ("There is no item {key} in this table.", "此表中没有物品 {key}。"),
    "js.level": ("level", "级"),
    "js.code": ("code", "编码"),
    "js.itemsThere": ("items with this prefix", "同前缀物品"),
    "js.about": ("about", "主题"),
    "js.nearest": ("Nearest items", "最近的物品"),
    "js.share1": ("{n} of its {m} nearest share its first code.", "最近的 {m} 个物品中有 {n} 个与它共用首级编码。"),
    "js.common": ("{n} codes in common", "相同编码 {n} 级"),
    "js.distance": ("distance", "距离"),
    "js.siblings": ("Items with the same first {n} codes", "前 {n} 级编码相同的物品"),
    "js.link": ("Link to this item", "此物品的链接"),
    "js.title": ("title", "标题"),
    "js.codesIn": ("its ID, what is in common in bold", "其ID（相同部分加粗）"),
    "js.alone": ("No other item shares its first code.", "没有其他物品与它共用首级编码。"),
    "js.noNearest": ("Its nearest items are not known on this page.", "本页没有它的近邻信息。"),
}


class _Formatter(string.Formatter):
    """Adds the conversions p, i and n."""

    def convert_field(self, value: Any, conversion: str | None) -> Any:
        if conversion == "p":
            return percent(float(value))
        if conversion == "i":
            return f"{value:,.0f}"
        if conversion == "n":
            return number(value)
        return super().convert_field(value, conversion)


class Words:
    """
    Texts of a language: `Words("zh")("items", count=3)`.

    Raises:
        KeyError: there is no such language, text or field.
    """

    def __init__(self, language: str) -> None:
        self.language = language
        self._place = LANGUAGES[language]

    def __call__(self, text: str, /, **values: Any) -> str:
        return _Formatter().vformat(TEXTS[text][self._place], (), values)

    def __contains__(self, name: str) -> bool:
        return name in TEXTS


def script_words(language: str) -> Mapping[str, str]:
    """Return the texts of the page's script, with fields like {n} left in."""
    place = LANGUAGES[language]
    return {name[3:]: texts[place] for name, texts in TEXTS.items() if name.startswith("js.")}
