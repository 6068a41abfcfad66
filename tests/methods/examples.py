"""Every method with parameters that act on a tiny model of four layers; a new method gets a line here."""

from __future__ import annotations

from vtw_eval.methods import Method, parse_method

_SPECS = {
    "baseline": "baseline",
    "vtw": "vtw,k=2",
    "rand": "rand,k=2",
    "random_k": "random_k,low=1,high=3",
    "fastv": "fastv,k=2,r=0.5",
    "fastv at 0": "fastv,k=0,r=0.25",
    "random_vision": "random_vision,k=1,r=0.75",
    "fastv, tokens": "fastv,k=1,tokens=2",
    "uniform": "uniform,r=0.4",
    "first": "first,k=1,tokens=3",
    "last": "last",
    "himap": "himap,k1=1,r1=0.3,k2=3,r2=0.7",
    "divprune": "divprune,r=0.6",
    "cdpruner": "cdpruner,r=0.6",
    "pyramiddrop": "pyramiddrop",
    "pyramiddrop, keep": "pyramiddrop,position=keep",
    "fastervlm": "fastervlm,r=0.4",
    "vtc_cls": "vtc_cls,tokens=2",
    "visionzip": "visionzip,r=0.4,contextual=0.4,space=decoder",
    "prumerge": "prumerge,space=decoder",
    "prumerge+": "prumerge,plus=true,space=decoder",
    "prumerge, known number": "prumerge,r=0.4,space=decoder",
    "fopru": "fopru,r=0.5",
    "fopru, rows": "fopru,r=0.5,strategy=row",
    "vispruner": "vispruner,r=0.5",
    "scope": "scope,r=0.6",
    "hiprune": "hiprune,r=0.3,alpha=1.0",
    "holov": "holov,r=0.4,stretches=3",
    "mmtok": "mmtok,r=0.5",
    "trim": "trim",
    "trim, known number": "trim,r=0.4",
    "vscan": "vscan,r=0.2,r2=0.5",
    "dart": "dart,k=1,r=0.4,vision_pivots=1,text_pivots=2",
    "feather": "feather,k1=1,r1=0.6,k2=3,r2=0.5,grid=2",
    "sparsevlm": "sparsevlm,k1=1,k2=2,k3=3",
    "sparsevlm, nothing merged": "sparsevlm,k1=1,k2=2,k3=3,r=0.7,recycle=false",
    "pact": "pact,k1=2,r=0.3,cutoff=0.9",
    "pact, known number": "pact,k1=1,r=0.3,merged=0.4",
    "fitprune": "fitprune",
    "pool": "pool",
    "ivc_prune": "ivc_prune,k1=2,r=0.7,coordinates=0.2",
    "ivc_prune, known number": "ivc_prune,k1=1,r=0.6,coordinates=0.2,union=false",
    "evs": "evs,r=0.5",
    "vidcom2": "vidcom2,r=0.5",
    "dycoke": "dycoke,thin=0.5",
    "dycoke, literal": "dycoke,thin=0.5,literal=true",
    "fastvid": "fastvid,r=0.25,context=0.5,segments=2",
    "framefusion": "framefusion,cost=0.6",
    "holitom": "holitom,r=0.5",
    "random_per_frame": "random_per_frame,r=0.4",
    "uniform_frames": "uniform_frames",
    "dyvte": "dyvte",
    "tome": "tome,k=1",
    "downsample": "downsample",
    "downsample+vtw": "downsample+vtw,vtw.k=2",
    "shortv": "shortv,order=2-0-3,n=2",
    "fastv+shortv": "fastv+shortv,fastv.k=1,fastv.r=0.5,shortv.order=2-0",
    "fastv+vtw": "fastv+vtw,fastv.k=1,fastv.r=0.5,vtw.k=3",
    "fastv+dyvte": "fastv+dyvte,fastv.k=1,fastv.r=0.5",
}

EXAMPLES: dict[str, Method] = {label: parse_method(spec) for label, spec in _SPECS.items()}
"""By label."""

_VIDEO = ("evs", "vidcom2", "dycoke", "fastvid", "framefusion", "holitom", "random_per_frame", "uniform_frames")

REFUSED: dict[tuple[str, str], str] = {("smolvlm", key): "nothing tells from the tiles" for key in _VIDEO}
"""Words of the reason for which a family refuses a method, by family and key of the method; test_methods.py checks."""
