"""The page at / of a master: the cluster at a glance, made anew in the browser every two seconds.

One text without anything from elsewhere; what nodes call themselves is written as text, never as
markup.
"""

__all__ = ["CLUSTER_PAGE"]

CLUSTER_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>mooncake-hicache cluster</title>
<meta name="viewport" content="width=device-width,initial-scale=1">
<style>
 body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}
 body{color:#1b1f24;background:#fff}
 h1{font-size:1.3rem} .role{font-weight:400;color:#57606a}
 .cards{display:flex;flex-wrap:wrap;gap:1rem;margin:1rem 0}
 .card{border:1px solid #d0d7de;border-radius:.5rem;padding:.6rem 1rem;min-width:9rem}
 .card b{display:block;font-size:1.4rem} .card span{color:#57606a}
 table{border-collapse:collapse;width:100%} td,th{padding:.4rem .6rem;text-align:right}
 td:first-child,th:first-child,td:nth-child(2),th:nth-child(2){text-align:left}
 tr{border-bottom:1px solid #d0d7de} meter{width:8rem}
 .live{color:#1a7f37} .suspect,.gone{color:#cf222e} .draining,.joining,.announcing{color:#9a6700}
 #trouble{color:#cf222e}
 @media (prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}}
</style></head><body>
<h1>mooncake-hicache cluster <span class="role" id="role"></span></h1>
<p id="trouble" role="alert"></p><div class="cards" id="cards"></div>
<table><thead><tr><th>node</th><th>state</th><th>pages</th><th>memory</th><th>in use</th>
<th>load</th><th>failure domain</th></tr></thead><tbody id="nodes"></tbody></table>
<script>
const units=["B","KiB","MiB","GiB","TiB","PiB"];
function size(n){let i=0;while(n>=1024&&i<5){n/=1024;i++}return n.toFixed(n<10&&i?1:0)+" "+units[i]}
function add(parent,tag,text,name){const e=document.createElement(tag);
 if(text!==undefined)e.textContent=text;if(name)e.className=name;parent.append(e);return e}
let before=null;
function rate(now,name){if(!before)return 0;
 return (now.stats[name]-before.stats[name])/((now.time_s-before.time_s)||1)}
function show(now){
 const s=now.stats,cards=document.getElementById("cards"),nodes=document.getElementById("nodes");
 document.getElementById("role").textContent=now.role+(now.epoch?", epoch "+now.epoch:"")+
  (now.role!=="leader"&&now.leader?", the leader is "+now.leader:"");
 cards.replaceChildren();nodes.replaceChildren();
 const keys=rate(now,"locate_keys"),hits=rate(now,"locate_hits");
 for(const [name,value] of [["nodes",now.members.filter(m=>m.state!=="gone").length],
   ["pages known",s.pages.toLocaleString()],["look-ups",keys.toFixed(0)+" pages/s"],
   ["of these found",keys?(100*hits/keys).toFixed(1)+" %":"–"],
   ["changes",rate(now,"changes").toFixed(0)+" /s"],["directory",size(s.memory_bytes)]]){
  const card=add(cards,"div",undefined,"card");add(card,"b",value);add(card,"span",name)}
 for(const m of now.members){const row=add(nodes,"tr");
  add(row,"td",m.name);add(row,"td",m.state,m.state);add(row,"td",m.pages.toLocaleString());
  add(row,"td",size(m.capacity_bytes));const cell=add(row,"td");const bar=add(cell,"meter");
  bar.max=m.capacity_bytes||1;bar.value=m.capacity_bytes-m.free_bytes;
  bar.title=size(m.capacity_bytes-m.free_bytes);
  add(row,"td",(100*m.load).toFixed(0)+" %");add(row,"td",m.failure_domain)}
 before=now}
async function look(){const trouble=document.getElementById("trouble");
 try{const answer=await fetch("api/cluster");if(!answer.ok)throw new Error(await answer.text());
  show(await answer.json());trouble.textContent=""}
 catch(error){trouble.textContent="The master does not answer: "+error.message}
 setTimeout(look,2000)}
look();
</script></body></html>
"""
